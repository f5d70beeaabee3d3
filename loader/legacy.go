package loader

import (
	"encoding/binary"
	"io"
	"math/big"

	"github.com/nlpodyssey/gopickle/types"
)

// What a legacy file starts with: its magic number and its version, each a
// pickle of its own.
const (
	legacyMagic   = "1950a86a20f9469cfc6c"
	legacyVersion = 1001
)

// openLegacy lists the tensors of a file from before PyTorch 1.6: five pickles
// (magic number, version, system, object, storage keys), then for each key an
// int64 count of elements and the elements.
func (c *Checkpoint) openLegacy(f io.ReaderAt, size int64) error {
	c.format = PyTorchLegacy
	var at int64
	plain := func() (any, error) {
		v, end, err := newUnpickler().load(f, at, size)
		at = end
		return v, err
	}
	magic, err := plain()
	if err != nil {
		return err
	}
	if n, ok := magic.(*big.Int); !ok || n.Text(16) != legacyMagic {
		return malformed("this is a pickle, but not one that torch.save wrote")
	}
	version, err := plain()
	if err != nil {
		return err
	}
	if version != any(legacyVersion) {
		return malformed("the legacy format has version %v, want %d", version, legacyVersion)
	}
	// The system's byte order does not matter: legacy files always hold
	// little-endian elements.
	if _, err := plain(); err != nil {
		return err
	}
	u := newUnpickler()
	u.resolve = func(s *pickledStorage) error {
		s.view.data = f // its place is known once the keys are read
		return nil
	}
	top, end, err := u.load(f, at, size)
	if err != nil {
		return err
	}
	at = end
	keys, err := plain()
	if err != nil {
		return err
	}
	if err := u.placeLegacy(f, keys, at, size); err != nil {
		return err
	}
	return c.addPickled(top, u)
}

// placeLegacy finds the storages in the file, in the order of their keys.
// What follows the last one is not looked at: torch.save may have been called
// again on the same file.
func (u *unpickler) placeLegacy(f io.ReaderAt, keys any, at, size int64) error {
	list, ok := keys.(*types.List)
	if !ok {
		return malformed("the list of storages is missing")
	}
	placed := map[string]bool{}
	for _, k := range *list {
		key, _ := text(k)
		s := u.storages[key]
		if s == nil || placed[key] {
			return malformed("the list of storages names %q, which the pickle does not use, or names it twice", shorten(key))
		}
		placed[key] = true
		var count [8]byte
		if size-at < 8 {
			return malformed("the file is cut short before storage %q", key)
		}
		if err := readAt(f, count[:], at); err != nil {
			return err
		}
		at += 8
		n, want := int64(binary.LittleEndian.Uint64(count[:])), s.view.size/int64(s.class.size)
		if n != want {
			return malformed("the storage %q has %d elements, want %d: the file is damaged", key, n, want)
		}
		if s.view.size > size-at {
			return malformed("the storage %q needs %d bytes, but %d are left: the file is cut short", key, s.view.size, size-at)
		}
		s.view.base = at
		at += s.view.size
	}
	for key := range u.storages {
		if !placed[key] {
			return malformed("the storage %q is not in the file", key)
		}
	}
	return nil
}
