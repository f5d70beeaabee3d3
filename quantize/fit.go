package quantize

import (
	"fmt"

	"github.com/fettle-dev/fettle/layer"
)

// Fit returns the options as a layer of the given inputs per row can have them,
// and what that changed: a group size that does not divide the inputs, or is
// not smaller, becomes one scale per channel. NVFP4 and MXFP4, which have
// nothing but their groups, then become integers of as many bits, and keep a
// group that is a whole row. Solve does the same; a plan calls Fit to know the
// size of the result beforehand.
func (o Options) Fit(inputs int) (Options, []layer.Fallback) {
	if o.Granularity != layer.PerGroup {
		return o, nil
	}
	reason := ""
	fixed := o.Format.GroupSize() > 0
	switch size := o.GroupSize; {
	case fixed && inputs%size == 0:
		return o, nil
	case size >= inputs:
		reason = fmt.Sprintf("a row has %d inputs", inputs)
	case inputs%size != 0:
		reason = fmt.Sprintf("%d does not divide a row's %d inputs", size, inputs)
	default:
		return o, nil
	}
	fallback := layer.Fallback{Asked: fmt.Sprintf("group size %d", o.GroupSize), Got: "one scale per channel", Reason: reason}
	if fixed {
		fallback.Asked = fmt.Sprintf("%s in groups of %d", o.Format, o.GroupSize)
		fallback.Got = fmt.Sprintf("integers of %d bits with one scale per channel", o.Bits)
		o.Format = layer.Integer
	}
	o.Granularity, o.GroupSize = layer.PerChannel, 0
	return o, []layer.Fallback{fallback}
}
