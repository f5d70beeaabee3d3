package record

// Search is how the levels of a model's layers were chosen. Fitness is better when
// lower, and only comparable between numbers of the same samples.
type Search struct {
	Method  string `json:"method"`          // evopress, or a baseline: dp, greedy, random, uniform
	Fitness string `json:"fitness"`         // kl, topk-kl, loss
	TopK    int    `json:"top_k,omitempty"` // of topk-kl
	Unit    string `json:"unit"`            // what samples are counted in: tokens or images
	Samples int    `json:"samples"`         // that batches are drawn from
	Seed    uint64 `json:"seed"`
	Data    *Data  `json:"data,omitempty"` // that candidates were measured on; nil: the calibration data

	Smallest int64 `json:"smallest_bytes"` // of the whole weight files, at the cheapest levels
	Largest  int64 `json:"largest_bytes"`

	Genes   []SearchGene   `json:"genes"`
	Results []SearchResult `json:"results"` // one for each size that was asked for
	// Chosen is the result that this run's model has.
	Chosen int `json:"chosen"`

	Seconds float64 `json:"seconds"`
}

// SearchGene is a layer, or several, that get one level.
type SearchGene struct {
	Name   string        `json:"name"`
	Layers []string      `json:"layers"`
	Levels []SearchLevel `json:"levels"`
}

// SearchLevel is one way to compress a gene.
type SearchLevel struct {
	Name  string `json:"name"` // such as "3 bits, 50 %"; "dropped" and "kept" too
	Bytes int64  `json:"bytes"`
	// RelativeError is the mean over the gene's layers; absent where it is not known.
	RelativeError *float64 `json:"relative_error,omitempty"`
	LeftOut       string   `json:"left_out,omitempty"` // why it could not be chosen
}

// SearchResult is what was found for one size.
type SearchResult struct {
	Asked  string `json:"asked"` // as it was written: 120MiB, 25%, 3 bits
	Budget int64  `json:"budget_bytes"`
	Bytes  int64  `json:"bytes"`  // of the weight files
	Levels []int  `json:"levels"` // by gene

	// Fitness of the result and of the baselines, all on the same samples.
	Fitness float64 `json:"fitness"`
	// InOrder is how far the model is from the original on the search's data when it is
	// compressed in the order of the data: KL, or the loss. nil where it was not tried.
	InOrder   *float64         `json:"in_order,omitempty"`
	Samples   int              `json:"samples"`
	Baselines []SearchBaseline `json:"baselines"`

	Generations []SearchGeneration `json:"generations,omitempty"`
	Evaluations []SearchEvaluation `json:"evaluations,omitempty"` // all of them, in order
}

// SearchBaseline is another way to choose levels within the same budget.
type SearchBaseline struct {
	Name    string  `json:"name"` // uniform, dp, greedy, random
	Bytes   int64   `json:"bytes"`
	Levels  []int   `json:"levels"`
	Fitness float64 `json:"fitness"` // −1 where the model cannot run
	// InOrder is as the result's.
	InOrder *float64 `json:"in_order,omitempty"`
}

// SearchGeneration is how far the search was. Generation 0 is the start.
type SearchGeneration struct {
	Generation int     `json:"generation"`
	Fitness    float64 `json:"fitness"` // of the parent, on this generation's own samples; −1 where it was not measured
	Bytes      int64   `json:"bytes"`
	Levels     []int   `json:"levels"`
	Improved   bool    `json:"improved"`
	Seconds    float64 `json:"seconds"` // since the search began
}

// SearchEvaluation is one candidate on one batch.
type SearchEvaluation struct {
	Generation int     `json:"g"`
	Stage      int     `json:"s"`
	Samples    int     `json:"n"`
	Bytes      int64   `json:"b"`
	Fitness    float64 `json:"f"` // −1 where it was stopped early, or cannot run
	Levels     string  `json:"l"` // by gene, a letter each: 0-9, a-z, A-Z; higher ones are "+"
}
