package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/gate"
	"github.com/fettle-dev/fettle/internal/atomicfile"
	"github.com/fettle-dev/fettle/record"
	"github.com/fettle-dev/fettle/report"
)

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "make the HTML report again from an output folder's record",
		ArgsUsage: "OUT",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "`FILE` to write; the default is OUT/" + record.ReportName},
		},
		Action: func(c *cli.Context) error {
			out, err := oneArgument(c, "OUT")
			if err != nil {
				return err
			}
			run, err := readRecord(out)
			if err != nil {
				return err
			}
			to := c.String("to")
			if to == "" {
				to = filepath.Join(out, record.ReportName)
			}
			if err := atomicfile.Write(to, func(w io.Writer) error { return report.HTML(w, run) }); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, to)
			return nil
		},
	}
}

// readRecord reads the record of an output folder.
func readRecord(out string) (*record.Run, error) {
	path := filepath.Join(out, record.FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &gate.InputError{Path: out, Err: errors.New("holds no " + record.FileName + "; name a folder that fettle compress wrote")}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	run, err := record.Decode(f)
	if err != nil {
		return nil, &gate.InputError{Path: path, Err: err}
	}
	return run, nil
}
