package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/gate"
	"github.com/fettle-dev/fettle/internal/bytesize"
)

func gateCommand() *cli.Command {
	return &cli.Command{
		Name:      "gate",
		Usage:     "hold an output folder against budgets; exit 1 when one fails",
		ArgsUsage: "OUT",
		Description: `Reads the record and the headers of the weight files of OUT, which fettle
compress wrote, and prints one verdict line for each budget. Exit code 0 when
all hold, 1 when one does not, 2 for a fault of the command line, 3 when OUT is
missing or its files are not what its record says.

  fettle gate OUT --max-size 180KB --max-ratio 0.2 --max-accuracy-drop 0.5
  fettle gate OUT --max-size 250KB --max-loss-increase 0.3    (a language model)`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "max-size", DefaultText: "no limit", Usage: "most bytes of weights, such as 180KB or 1.5MiB (KB is 1,000 bytes)"},
			&cli.Float64Flag{Name: "max-ratio", DefaultText: "no limit", Usage: "most bytes relative to the source file, such as 0.2"},
			&cli.Float64Flag{Name: "max-accuracy-drop", DefaultText: "no limit", Usage: "most points of top-1 that a classifier may lose"},
			&cli.Float64Flag{Name: "max-loss-increase", DefaultText: "no limit", Usage: "most nats per token that a language model's loss may rise"},
			&cli.Float64Flag{Name: "max-perplexity-ratio", DefaultText: "no limit", Usage: "most perplexity of a language model relative to the original's, such as 1.05"},
			&cli.Float64Flag{Name: "max-kl", DefaultText: "no limit", Usage: "most KL divergence from the original's outputs, in nats"},
			&cli.Float64Flag{Name: "max-output-error", DefaultText: "no limit", Usage: "most relative squared error of an encoder's features"},
			&cli.Float64Flag{Name: "max-relative-error", DefaultText: "no limit", Usage: "most relative error of any layer on the calibration data"},
			&cli.IntFlag{Name: "max-fallbacks", DefaultText: "no limit", Usage: "most times that a layer did not get what the recipe asked for"},
		},
		Action: func(c *cli.Context) error {
			path, err := oneArgument(c, "OUT")
			if err != nil {
				return err
			}
			budgets, err := budgetsOf(c)
			if err != nil {
				return err
			}
			verdicts, err := gate.Check(c.Context, path, budgets)
			if errors.Is(err, gate.ErrNoBudget) {
				return usagef("no budget given; `fettle gate --help` lists them")
			}
			if err != nil {
				return err
			}
			failed := false
			for _, v := range verdicts {
				fmt.Fprintln(c.App.Writer, v)
				failed = failed || !v.Pass
			}
			if failed {
				return errBudget
			}
			return nil
		},
	}
}

func budgetsOf(c *cli.Context) (gate.Budgets, error) {
	var b gate.Budgets
	if s := c.String("max-size"); s != "" {
		n, err := bytesize.Parse(s)
		if err != nil {
			return b, usagef("--max-size: %w", err)
		}
		if n == 0 {
			return b, usagef("--max-size is 0; no model is that small")
		}
		b.MaxSize = n
	}
	b.MaxRatio = c.Float64("max-ratio")
	if c.IsSet("max-ratio") && b.MaxRatio == 0 {
		return b, usagef("--max-ratio is 0; no model is that small")
	}
	for name, field := range map[string]**float64{
		"max-accuracy-drop": &b.MaxAccuracyDrop, "max-loss-increase": &b.MaxLossIncrease, "max-perplexity-ratio": &b.MaxPerplexityRatio,
		"max-kl": &b.MaxKL, "max-output-error": &b.MaxOutputError, "max-relative-error": &b.MaxRelativeError,
	} {
		if c.IsSet(name) {
			v := c.Float64(name)
			*field = &v
		}
	}
	if c.IsSet("max-fallbacks") {
		n := c.Int("max-fallbacks")
		b.MaxFallbacks = &n
	}
	return b, nil
}
