package export

import (
	"cmp"
	"io"
	"slices"

	"github.com/fettle-dev/fettle/record"
)

// WriteManifest writes manifest.json into dir: what was written, from what,
// by which recipe. It goes last, when the files have been verified. The files
// are listed by name, so the same outcome has the same bytes everywhere. It
// returns the manifest's own SHA-256.
func WriteManifest(dir string, sourceSHA, recipeSHA string, files []record.File) (sha256 string, err error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b record.File) int { return cmp.Compare(a.Name, b.Name) })
	f, err := writeFile(dir, record.ManifestName, "", func(w io.Writer) error {
		return record.Encode(w, record.Manifest{Version: record.Version, Source: sourceSHA, Recipe: recipeSHA, Files: files})
	})
	return f.SHA256, err
}
