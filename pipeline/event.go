package pipeline

import "time"

// Stage is a part of a run, as events and the record name it.
type Stage string

// The stages, in the order in which a run first enters them.
const (
	StageOpen       Stage = "open"       // reading headers, hashing the source, making the plan
	StageRemove     Stage = "remove"     // choosing the parts that go
	StageAllocate   Stage = "allocate"   // measuring how much each layer should lose
	StageOriginal   Stage = "original"   // forward pass of the original stream
	StageCompressed Stage = "compressed" // forward pass of the compressed stream
	StageMoments    Stage = "moments"    // second moments of what layers read
	StageSolve      Stage = "solve"      // the methods themselves
	StageLevels     Stage = "levels"     // layers at the levels that a search chooses among
	StageSearch     Stage = "search"     // candidates on calibration data
	StageUnits      Stage = "units"      // reading and writing units on disk
	StageWrite      Stage = "write"      // the output files
	StageVerify     Stage = "verify"     // reading them back
	StageEvaluate   Stage = "evaluate"   // both models on the evaluation data
)

// Event is something that happened. Events come one at a time, in order, on
// the goroutine that runs the pipeline; a slow callback slows the run.
type Event struct {
	Stage Stage
	// Layer is set when one layer was finished; Done and Total then count
	// layers. In StageRemove it is a part that goes or loses units, and they count
	// parts. In StageEvaluate they count samples, over both models, in
	// StageAllocate layers that were measured.
	Layer  string
	Cached bool // the layer's solution, or the evaluation, was found on disk
	Done   int
	Total  int
	// Elapsed is the time since the run began.
	Elapsed time.Duration
	// RelativeError of the finished layer; negative when not measured.
	RelativeError float64
	// Search is set when a generation of a search is done.
	Search *SearchProgress
	// Warning is a text for the user, such as a fallback; else empty.
	Warning string
}
