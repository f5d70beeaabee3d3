// Command fettle makes trained models smaller without training them again.
//
// One file per command; this one holds what they share: how errors become exit
// codes, and how a signal stops the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/fettle-dev/fettle/dataset"
	"github.com/fettle-dev/fettle/dataset/tokenizer"
	"github.com/fettle-dev/fettle/evaluate"
	"github.com/fettle-dev/fettle/export"
	"github.com/fettle-dev/fettle/gate"
	"github.com/fettle-dev/fettle/inspect"
	"github.com/fettle-dev/fettle/internal/scratch"
	"github.com/fettle-dev/fettle/layer"
	"github.com/fettle-dev/fettle/loader"
	"github.com/fettle-dev/fettle/model"
	"github.com/fettle-dev/fettle/pipeline"
	"github.com/fettle-dev/fettle/prune"
	"github.com/fettle-dev/fettle/search/fitness"
)

// version is set by the Makefile; a plain go build leaves it to the module's
// own build information.
var version string

// Exit codes. The README documents them.
const (
	exitOK          = 0
	exitBudget      = 1 // a budget of the gate does not hold, or a scan found danger
	exitUsage       = 2 // the command line or the recipe is at fault
	exitInput       = 3 // a file is at fault, or cannot be written
	exitInternal    = 4
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes the command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:            "fettle",
		Usage:           "make trained models smaller, without training them again",
		HideHelpCommand: true,
		HideVersion:     true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides
		Commands: []*cli.Command{
			compressCommand(), searchCommand(), planCommand(), evaluateCommand(), inspectCommand(), scanCommand(), gateCommand(), reportCommand(), versionCommand(), randomLlamaCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("unknown command %q; `fettle --help` lists the commands", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		OnUsageError: onUsageError,
	}
	for _, c := range app.Commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
	}
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err == nil {
		return exitOK
	}
	code := exitCode(ctx, err)
	switch code {
	case exitBudget: // the verdict or the list has been printed
	case exitInterrupted:
		fmt.Fprintln(stderr, "fettle: interrupted; no output was written. What was finished is in the cache, if one is in use.")
	case exitInternal:
		fmt.Fprintf(stderr, "fettle: %v\nThis is not the input's fault as far as fettle can tell. Please report it.\n", err)
	default:
		fmt.Fprintf(stderr, "fettle: %v\n", err)
	}
	return code
}

// usageError is a fault of the command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usagef("%w; `%s --help` lists the flags", err, strings.TrimSpace("fettle "+commandName(c)))
}

func commandName(c *cli.Context) string {
	if c.Command == nil || c.Command.Name == "fettle" {
		return ""
	}
	return c.Command.Name
}

// errBudget says that a budget does not hold.
var errBudget = errors.New("over budget")

func exitCode(ctx context.Context, err error) int {
	switch {
	case ctx.Err() != nil || errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, errBudget), errors.Is(err, errDangerous):
		return exitBudget
	case is[usageError](err), is[*pipeline.RecipeError](err), is[*pipeline.FallbackError](err), is[*pipeline.MemoryError](err), is[*pipeline.FitError](err), is[*model.OptionError](err), is[*prune.AllocationError](err), errors.Is(err, prune.ErrImpossible),
		is[*inspect.OptionError](err), is[*gate.BudgetError](err), errors.Is(err, gate.ErrNoBudget), errors.Is(err, pipeline.ErrNothingToDo), errors.Is(err, fs.ErrExist):
		return exitUsage
	case is[*loader.FormatError](err), is[*layer.InputError](err), is[*prune.ValueError](err), errors.Is(err, loader.ErrNotFound), errors.Is(err, export.ErrCorrupt), is[*export.MethodError](err), is[*tokenizer.FormatError](err), is[*tokenizer.UnsupportedError](err), is[*tokenizer.TextError](err), is[*model.UnsupportedError](err), is[*model.TensorError](err), is[*model.ConfigError](err), is[*model.TokenError](err),
		is[*dataset.Error](err), is[*evaluate.Error](err), is[*export.TensorError](err), is[*gate.InputError](err),
		is[*pipeline.InputError](err), is[*pipeline.MomentsError](err), is[*pipeline.ForwardError](err), is[*fitness.Error](err), is[*fitness.LevelError](err), is[*pipeline.OutputError](err), is[*pipeline.NonFiniteError](err), is[*pipeline.CacheError](err), is[*scratch.Error](err),
		is[*fs.PathError](err):
		return exitInput
	}
	return exitInternal
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// flagsFirst moves a command's flags before its arguments, so that both
// `compress --out OUT model.th` and `compress model.th --out OUT` work: the
// flag parser stops at the first argument.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	command := app.Command(args[1])
	if command == nil {
		return args
	}
	takesValue := map[string]bool{}
	for _, f := range command.Flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	var flags, rest []string
	for i := 2; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		flags = append(flags, a)
		name := strings.TrimLeft(a, "-")
		if takesValue[name] && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return append(append(append(args[:2:2], flags...), "--"), rest...)
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// oneArgument returns a command's only argument.
func oneArgument(c *cli.Context, what string) (string, error) {
	switch c.NArg() {
	case 0:
		return "", usagef("%s is missing; usage: fettle %s %s [flags]", what, c.Command.Name, c.Command.ArgsUsage)
	case 1:
		return c.Args().First(), nil
	}
	return "", usagef("one %s is wanted, %d were given: %s", what, c.NArg(), strings.Join(c.Args().Slice(), " "))
}
