package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fettle": func() { os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the command as a user does. $MODELS is the project's
// testmodels folder, $DATA the folder of real models, which is not part of the
// project: scripts that need it skip without it.
func TestScripts(t *testing.T) {
	models, err := filepath.Abs("../../testmodels")
	if err != nil {
		t.Fatal(err)
	}
	data, err := filepath.Abs("../../../shared/data")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MODELS", models)
			e.Setenv("DATA", data)
			e.Setenv("RECIPES", filepath.Join(models, "..", "recipes"))
			e.Setenv("FETTLE_CACHE", filepath.Join(e.WorkDir, "cache"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "data":
				_, err := os.Stat(data)
				return err == nil, nil
			case "long":
				return os.Getenv("FETTLE_LONG") != "", nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, nil
		},
	})
}
