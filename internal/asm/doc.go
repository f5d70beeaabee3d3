// Package asm is the module of the programs that write fettle's assembly. It is
// a module of its own so that the library does not depend on the generator.
// Each program writes the .s file of one package; `make asm` runs them all, and
// CI checks that what is committed is what they write.
package asm
