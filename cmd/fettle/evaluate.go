package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/pipeline"
)

func evaluateCommand() *cli.Command {
	return &cli.Command{
		Name:      "evaluate",
		Usage:     "measure a checkpoint, or what fettle wrote, on the recipe's evaluation data",
		ArgsUsage: "MODEL",
		Description: `MODEL is a checkpoint, or an output folder of fettle compress, whose weights
are dequantized as they are read. The recipe names the data and how it is
normalized; its rules play no part.

  fettle evaluate OUT --recipe adaround-w4.yaml`,
		Flags: append(recipeFlags(),
			&cli.IntFlag{Name: "workers", DefaultText: "one for each processor", Usage: "goroutines that compute"},
		),
		Action: func(c *cli.Context) error {
			recipe, err := readRecipe(c)
			if err != nil {
				return err
			}
			result, err := pipeline.Evaluate(c.Context, recipe, pipeline.Options{Workers: c.Int("workers")})
			if err != nil {
				return err
			}
			if l := result.Language; l != nil {
				_, err = fmt.Fprintf(c.App.Writer, "mean loss %.6f nats over %d tokens of %d sequences, perplexity %.4f\n", l.Loss, result.Predicted, result.Samples, l.Perplexity)
				return err
			}
			m := result.Metrics
			_, err = fmt.Fprintf(c.App.Writer, "%d of %d right (%.2f %%), mean loss %.6f\n", m.Correct, result.Samples, m.Top1, m.Loss)
			return err
		},
	}
}
