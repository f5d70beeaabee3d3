package quantize

import (
	"fmt"

	"github.com/fettle-dev/fettle/layer"
)

// Fit returns the options as a layer of the given inputs per row can have them,
// and what that changed: a group size that does not divide the inputs, or is
// not smaller, becomes one scale per channel. Solve does the same; a plan calls
// Fit to know the size of the result beforehand.
func (o Options) Fit(inputs int) (Options, []layer.Fallback) {
	if o.Granularity != layer.PerGroup {
		return o, nil
	}
	reason := ""
	switch size := o.GroupSize; {
	case size >= inputs:
		reason = fmt.Sprintf("a row has %d inputs", inputs)
	case inputs%size != 0:
		reason = fmt.Sprintf("%d does not divide a row's %d inputs", size, inputs)
	default:
		return o, nil
	}
	fallback := layer.Fallback{Asked: fmt.Sprintf("group size %d", o.GroupSize), Got: "one scale per channel", Reason: reason}
	o.Granularity, o.GroupSize = layer.PerChannel, 0
	return o, []layer.Fallback{fallback}
}
