package dataset

import _ "embed"

// BuiltInSeparator divides BuiltIn's documents.
const BuiltInSeparator = "<|endoftext|>"

//go:embed builtin.txt
var builtIn string

// BuiltIn returns a small English text of the project's own, in the public
// domain: stories, dialogue, letters, explanations, lists and code, divided by
// BuiltInSeparator. It is there so that a first run needs no data; a model of
// another kind of text wants text of its own kind.
func BuiltIn() string { return builtIn }
