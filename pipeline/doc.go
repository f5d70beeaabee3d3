// Package pipeline runs a compression: it reads a recipe, makes the plan,
// advances the two activation streams through the graph, has each layer solved
// where its input is known, writes the result, and measures what it cost.
//
// The shortest use:
//
//	recipe, err := pipeline.ReadRecipe("recipe.yaml")
//	if err != nil { … }
//	run, err := pipeline.Run(ctx, recipe, pipeline.Options{})
//
// run is the record of everything done and measured; the output folder holds
// it too, as record.json. Events report progress; this package prints nothing.
//
// # The loop
//
// Two streams advance together: the original's activations X and the
// compressed model's X̃. They stop at each value that layers read. There its
// moments are taken, once for all the layers that read it the same way; the
// layers are solved in parallel, workers sharing their rows; and the compressed
// stream goes on with the new weights. Each stream makes one forward pass in
// all, whatever the depth.
//
// # Units
//
// Moments, solutions and evaluation outputs are finished units of work. With
// Options.Cache set, each is one file under the hash of everything that it
// depends on, and is found again by a later run that depends on the same.
package pipeline
