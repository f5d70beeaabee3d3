package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/loader"
)

// errDangerous says that a pickle names what can do harm.
var errDangerous = errors.New("dangerous names")

func scanCommand() *cli.Command {
	return &cli.Command{
		Name:      "scan",
		Usage:     "list what the pickles of a checkpoint name, running none; exit 1 on a dangerous name",
		ArgsUsage: "PATH",
		Description: `Follows every pickle in PATH and prints each class and function that it names:
dangerous ones can run code, or reach files, processes or the network; known
ones are PyTorch's own way to write tensors, or plain data; of the others fettle
has no opinion. PATH is a file (PyTorch of any age, TorchScript, any pickle), an
index of shards, or a folder, of which every file below it is scanned. Nothing
that a file names is run or imported.

Exit code 0 when no name is dangerous, 1 when one is, 2 for a fault of the
command line, 3 when a file is missing or a pickle is malformed. A name that
stands before the fault is listed: Python would have run it.

  fettle scan pytorch_model.bin
  fettle scan --json models/ > scan.json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
		},
		Action: func(c *cli.Context) error {
			path, err := oneArgument(c, "PATH")
			if err != nil {
				return err
			}
			found, err := loader.Scan(c.Context, path)
			if err != nil {
				return err
			}
			write := writeScan
			if c.Bool("json") {
				write = writeScanJSON
			}
			if err := write(c.App.Writer, found); err != nil {
				return err
			}
			if found.Count(loader.Dangerous) > 0 {
				return errDangerous
			}
			for _, f := range found.Files {
				if f.Problem != "" {
					return &loader.FormatError{Path: f.Path, Reason: f.Problem}
				}
			}
			return nil
		},
	}
}

func writeScan(w io.Writer, found *loader.Scanned) error {
	pickles := 0
	for _, f := range found.Files {
		pickles += f.Pickles
		for _, g := range f.Globals {
			place := fmt.Sprintf("byte %d", g.Offset)
			if g.Pickle != "" {
				place += " of " + g.Pickle
			}
			if _, err := fmt.Fprintf(w, "%-9s  %s  (%s, %s)\n", g.Class, g.Name, f.Path, place); err != nil {
				return err
			}
		}
		if f.Problem != "" {
			if _, err := fmt.Fprintf(w, "%-9s  %s: %s\n", "problem", f.Path, f.Problem); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "%d dangerous, %d unknown and %d known names in %d pickles\n",
		found.Count(loader.Dangerous), found.Count(loader.Unknown), found.Count(loader.Known), pickles)
	return err
}

// writeScanJSON prints the result for programs. Keys keep their meaning, or the
// version grows.
func writeScanJSON(w io.Writer, found *loader.Scanned) error {
	type global struct {
		Name   string           `json:"name"`
		Class  loader.NameClass `json:"class"`
		Pickle string           `json:"pickle,omitempty"`
		Offset int64            `json:"offset"`
		Count  int              `json:"count"`
	}
	type file struct {
		Path    string   `json:"path"`
		Pickles int      `json:"pickles"`
		Globals []global `json:"globals"`
		Problem string   `json:"problem,omitempty"`
	}
	out := struct {
		Version   int    `json:"version"`
		Dangerous int    `json:"dangerous"`
		Unknown   int    `json:"unknown"`
		Known     int    `json:"known"`
		Files     []file `json:"files"`
	}{1, found.Count(loader.Dangerous), found.Count(loader.Unknown), found.Count(loader.Known), []file{}}
	for _, f := range found.Files {
		globals := []global{}
		for _, g := range f.Globals {
			globals = append(globals, global(g))
		}
		out.Files = append(out.Files, file{f.Path, f.Pickles, globals, f.Problem})
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(out)
}
