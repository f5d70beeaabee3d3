package loader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
)

// Limits of a pickle. They are far above what real checkpoints need: a state
// dict takes some hundred bytes of pickle and some kilobytes of memory per
// tensor.
const (
	maxPickle  = 256 << 20 // bytes of the stream
	maxObjects = 1 << 30   // estimated bytes of the objects that it builds
	maxMarks   = 10_000    // marks that are open at once
	maxDigits  = 1_000     // digits of a decimal integer
	maxLong    = 1_024     // bytes of a binary integer
	maxNesting = 1_000     // levels of containers that are walked for tensors
)

// argKind says what follows an opcode in the stream.
type argKind uint8

const (
	argNone    argKind = iota
	argFixed           // size bytes
	argCounted         // a length of size bytes, then as many bytes
	argLine            // text up to a newline
	argLines           // two such texts: a module and a name
	argDigits          // a decimal number up to a newline
)

// opcode is what the checking pass must know of an operation.
type opcode struct {
	kind argKind
	size int
	pop  int  // items that it takes off the stack (below its mark, if it has one)
	push int  // items that it puts on
	mark bool // takes all items above the last mark first
	cost int  // estimated bytes of memory, without its argument

	refused bool // known, so that Scan can go on, but not allowed in a checkpoint
}

// Estimates of the memory that gopickle and the stack take for each.
const (
	costItem  = 32
	costMark  = 320
	costObj   = 256
	costEntry = 96
)

// opcodes are all operations. Refused are those that torch.save never writes and
// that would need outside help: extension registry, out-of-band buffers, textual
// persistent ids.
var opcodes = [256]opcode{
	'(': {cost: costMark},
	'.': {pop: 1, cost: costItem},
	'0': {pop: 1, cost: costItem},
	'1': {mark: true, cost: costItem},
	'2': {pop: 1, push: 2, cost: costItem},

	'N': {push: 1, cost: costItem}, 0x88: {push: 1, cost: costItem}, 0x89: {push: 1, cost: costItem},
	'F': {kind: argDigits, push: 1, cost: costItem}, 'G': {kind: argFixed, size: 8, push: 1, cost: costItem},
	'I': {kind: argDigits, push: 1, cost: costItem}, 'L': {kind: argDigits, push: 1, cost: costItem},
	'J': {kind: argFixed, size: 4, push: 1, cost: costItem},
	'K': {kind: argFixed, size: 1, push: 1, cost: costItem},
	'M': {kind: argFixed, size: 2, push: 1, cost: costItem},

	0x8a: {kind: argCounted, size: 1, push: 1, cost: costEntry},
	0x8b: {kind: argCounted, size: 4, push: 1, cost: costEntry},
	'S':  {kind: argLine, push: 1, cost: costItem}, 'V': {kind: argLine, push: 1, cost: costItem},
	'T': {kind: argCounted, size: 4, push: 1, cost: costItem}, 'U': {kind: argCounted, size: 1, push: 1, cost: costItem},
	'X': {kind: argCounted, size: 4, push: 1, cost: costItem}, 0x8c: {kind: argCounted, size: 1, push: 1, cost: costItem},
	0x8d: {kind: argCounted, size: 8, push: 1, cost: costItem},
	'B':  {kind: argCounted, size: 4, push: 1, cost: costItem}, 'C': {kind: argCounted, size: 1, push: 1, cost: costItem},
	0x8e: {kind: argCounted, size: 8, push: 1, cost: costItem}, 0x96: {kind: argCounted, size: 8, push: 1, cost: costItem},

	')': {push: 1, cost: costEntry}, 't': {mark: true, push: 1, cost: costEntry},
	0x85: {pop: 1, push: 1, cost: costEntry}, 0x86: {pop: 2, push: 1, cost: costEntry}, 0x87: {pop: 3, push: 1, cost: costEntry},
	']': {push: 1, cost: costObj}, 'l': {mark: true, push: 1, cost: costEntry},
	'a': {pop: 2, push: 1, cost: costItem}, 'e': {mark: true, pop: 1, push: 1, cost: costItem},
	'}': {push: 1, cost: costObj}, 'd': {mark: true, push: 1, cost: costObj},
	's': {pop: 3, push: 1, cost: costEntry}, 'u': {mark: true, pop: 1, push: 1, cost: costItem},
	0x8f: {push: 1, cost: costObj}, 0x90: {mark: true, pop: 1, push: 1, cost: costItem}, 0x91: {mark: true, push: 1, cost: costEntry},

	'c': {kind: argLines, push: 1, cost: costObj}, 0x93: {pop: 2, push: 1, cost: costObj},
	'i': {kind: argLines, mark: true, push: 1, cost: costObj}, 'o': {mark: true, push: 1, cost: costObj},
	'R': {pop: 2, push: 1, cost: costObj}, 'b': {pop: 2, push: 1, cost: costEntry},
	0x81: {pop: 2, push: 1, cost: costObj}, 0x92: {pop: 3, push: 1, cost: costObj},
	'Q': {pop: 1, push: 1, cost: costObj},

	'g': {kind: argDigits, push: 1, cost: costItem}, 'h': {kind: argFixed, size: 1, push: 1, cost: costItem},
	'j': {kind: argFixed, size: 4, push: 1, cost: costItem},
	'p': {kind: argDigits, pop: 1, push: 1, cost: costEntry}, 'q': {kind: argFixed, size: 1, pop: 1, push: 1, cost: costEntry},
	'r': {kind: argFixed, size: 4, pop: 1, push: 1, cost: costEntry}, 0x94: {pop: 1, push: 1, cost: costEntry},

	0x80: {kind: argFixed, size: 1, cost: costItem},
	0x95: {kind: argFixed, size: 8, cost: costItem},
	0x98: {pop: 1, push: 1, cost: costItem},

	'P':  {kind: argLine, push: 1, cost: costObj, refused: true},
	0x82: {kind: argFixed, size: 1, push: 1, cost: costObj, refused: true},
	0x83: {kind: argFixed, size: 2, push: 1, cost: costObj, refused: true},
	0x84: {kind: argFixed, size: 4, push: 1, cost: costObj, refused: true},
	0x97: {push: 1, cost: costItem, refused: true},
}

// ownPrefix marks module names in the stream that gopickle gets. gopickle
// resolves some names itself (collections.OrderedDict, array.array, …); none
// starts with this.
const ownPrefix = "!"

// checker walks a pickle's operations without building anything.
type checker struct {
	in    *bufio.Reader
	pos   int64 // of the next byte
	limit int64 // where the bytes end, or all that are allowed
	long  bool  // more bytes follow the limit

	out    bytes.Buffer
	trace  *tracer // nil but for Scan, which wants no stream
	levels []int   // items on the stack, per open mark
	memo   map[uint64]struct{}
	cost   int64
	frame  int64 // end of the current frame, 0 for none
}

// checkPickle checks the pickle at an offset of r, which has size bytes, and
// returns an equivalent stream that is safe for gopickle, and where the pickle
// ends.
//
// Every length is held against the bytes that are left, the stack, marks and
// memo are followed, and the memory that the objects will take is summed.
// What comes out differs from what went in where gopickle would fail on good
// input or spend too much on bad: frames are dropped, empty integers become 0,
// sets become lists, all classes are looked up by FindClass (GLOBAL, INST,
// with ownPrefix) or as a persistent id (STACK_GLOBAL, a pair of strings), escaped
// strings are written out, and NEWOBJ_EX becomes a NEWOBJ with the two arguments
// (args, kwargs).
func checkPickle(r io.ReaderAt, off, size int64) (stream []byte, end int64, err error) {
	c := newChecker(r, off, size)
	if err := c.run(); err != nil {
		return nil, 0, err
	}
	return c.out.Bytes(), c.pos, nil
}

func newChecker(r io.ReaderAt, off, size int64) *checker {
	limit := min(size, off+maxPickle)
	return &checker{
		in:  bufio.NewReaderSize(io.NewSectionReader(r, off, limit-off), 1<<16),
		pos: off, limit: limit, long: limit < size,
		levels: []int{0},
		memo:   map[uint64]struct{}{},
	}
}

// run follows the pickle to its STOP.
func (c *checker) run() error {
	for {
		op, err := c.readByte()
		if err != nil {
			return err
		}
		if err := c.step(op); err != nil {
			return err
		}
		if op == '.' {
			return nil
		}
	}
}

func (c *checker) bad(format string, args ...any) error {
	return malformed("the pickle is malformed at byte %d: "+format, append([]any{c.pos}, args...)...)
}

// short reports that more bytes are wanted than there are.
func (c *checker) short() error {
	if c.long {
		return malformed("the pickle has more than the %d bytes that are allowed", int64(maxPickle))
	}
	return malformed("the pickle ends at byte %d, before its STOP: the file is cut short", c.limit)
}

func (c *checker) step(op byte) error {
	o := opcodes[op]
	if o.cost == 0 || o.refused && c.trace == nil {
		return c.bad("the operation 0x%02x is not allowed", op)
	}
	at := c.pos - 1
	if c.frame != 0 && c.pos-1 >= c.frame {
		c.frame = 0
	}
	arg, err := c.readArg(o)
	if err != nil {
		return err
	}
	if c.frame != 0 && c.pos > c.frame {
		return c.bad("an operation crosses the end of its frame")
	}
	c.cost += int64(o.cost) + 2*int64(len(arg))
	if c.cost > maxObjects {
		return c.bad("its objects would take more than %d bytes", int64(maxObjects))
	}
	if err := c.follow(op, o); err != nil {
		return err
	}
	if err := c.remember(op, arg); err != nil {
		return err
	}
	if err := c.limits(op, arg); err != nil {
		return err
	}
	if c.trace != nil {
		return c.trace.step(op, o, arg, at)
	}
	c.emit(op, arg)
	return nil
}

// follow applies the operation to the sizes of the stacks.
func (c *checker) follow(op byte, o opcode) error {
	top := &c.levels[len(c.levels)-1]
	switch {
	case op == '(':
		if len(c.levels) > maxMarks {
			return c.bad("more than %d marks are open", maxMarks)
		}
		c.levels = append(c.levels, 0)
		return nil
	case op == '0' && *top == 0: // POP takes a mark as well
		o = opcodes['1']
	}
	if o.mark {
		if len(c.levels) == 1 {
			return c.bad("the operation 0x%02x has no mark", op)
		}
		items := *top
		if (op == 'u' || op == 'd') && items%2 != 0 {
			return c.bad("a dict gets a key without a value")
		}
		if op == 'o' && items == 0 {
			return c.bad("an object has no class")
		}
		c.levels = c.levels[:len(c.levels)-1]
		top = &c.levels[len(c.levels)-1]
		c.cost += int64(items) * costEntry
	}
	if *top < o.pop {
		return c.bad("the operation 0x%02x wants %d items on the stack, there are %d", op, o.pop, *top)
	}
	*top += o.push - o.pop
	return nil
}

// remember follows the memo.
func (c *checker) remember(op byte, arg []byte) error {
	switch op {
	case 'p', 'q', 'r', 'g', 'h', 'j':
		key, err := memoKey(op, arg)
		if err != nil {
			return c.bad("the memo key %q is not a number", arg)
		}
		if op == 'p' || op == 'q' || op == 'r' {
			c.memo[key] = struct{}{}
		} else if _, ok := c.memo[key]; !ok {
			return c.bad("it recalls item %d, which was never stored", key)
		}
	case 0x94:
		c.memo[uint64(len(c.memo))] = struct{}{}
	}
	return nil
}

func memoKey(op byte, arg []byte) (uint64, error) {
	switch op {
	case 'p', 'g':
		return strconv.ParseUint(string(bytes.TrimSuffix(arg, []byte("\n"))), 10, 32)
	case 'q', 'h':
		return uint64(arg[0]), nil
	}
	return uint64(binary.LittleEndian.Uint32(arg)), nil
}

// limits holds arguments against what is allowed, and follows the frames.
func (c *checker) limits(op byte, arg []byte) error {
	switch {
	case op == 0x80 && arg[0] > 5:
		return c.bad("its protocol is %d, at most 5 can be read", arg[0])
	case op == 0x95:
		n := binary.LittleEndian.Uint64(arg)
		if c.frame != 0 || n > uint64(c.limit-c.pos) {
			return c.bad("a frame of %d bytes is inside another, or longer than what follows", n)
		}
		c.frame = c.pos + int64(n)
	case (op == 0x8a || op == 0x8b) && len(arg) > maxLong:
		return c.bad("an integer has %d bytes, at most %d are allowed", len(arg), maxLong)
	}
	return nil
}

// emit writes the operation as gopickle is to see it.
func (c *checker) emit(op byte, arg []byte) {
	switch {
	case op == 0x95, op == 0x98: // FRAME and READONLY_BUFFER change nothing here
		return
	case (op == 0x8a || op == 0x8b) && len(arg) == opcodes[op].size: // an empty integer is 0
		c.out.Write([]byte{'K', 0})
		return
	case op == 'S' || op == 'V':
		text, ok := textOf(op, arg)
		if !ok {
			break // gopickle says what is wrong
		}
		c.out.WriteByte('X')
		c.out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(text))))
		c.out.WriteString(text)
		return
	case op == 'c' || op == 'i':
		c.out.WriteByte(op)
		c.out.WriteString(ownPrefix)
		c.out.Write(arg)
		return
	case op == 0x93: // TUPLE2 BINPERSID
		c.out.Write([]byte{0x86, 'Q'})
		return
	case op == 0x92: // TUPLE2 NEWOBJ
		c.out.Write([]byte{0x86, 0x81})
		return
	case op == 0x8f:
		op = ']'
	case op == 0x90:
		op = 'e'
	case op == 0x91:
		op = 'l'
	}
	c.out.WriteByte(op)
	c.out.Write(arg)
}

// readArg returns the bytes that follow an opcode, lengths and newlines
// included. It allocates no more than the file holds.
func (c *checker) readArg(o opcode) ([]byte, error) {
	switch o.kind {
	case argFixed:
		return c.read(int64(o.size))
	case argCounted:
		prefix, err := c.read(int64(o.size))
		if err != nil {
			return nil, err
		}
		var wide [8]byte
		copy(wide[:], prefix)
		n := binary.LittleEndian.Uint64(wide[:])
		if n > uint64(c.limit-c.pos) {
			return nil, c.bad("a length of %d bytes exceeds the %d that follow: the file is damaged or cut short", n, c.limit-c.pos)
		}
		data, err := c.read(int64(n))
		return append(prefix, data...), err
	case argLine:
		return c.readLine(nil, 0)
	case argDigits:
		return c.readLine(nil, maxDigits)
	case argLines:
		module, err := c.readLine(nil, 0)
		if err != nil {
			return nil, err
		}
		return c.readLine(module, 0)
	}
	return nil, nil
}

func (c *checker) readByte() (byte, error) {
	b, err := c.in.ReadByte()
	if errors.Is(err, io.EOF) {
		return 0, c.short()
	}
	c.pos++
	return b, err
}

func (c *checker) read(n int64) ([]byte, error) {
	if n > c.limit-c.pos {
		return nil, c.short()
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(c.in, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = c.short()
		}
		return nil, err
	}
	c.pos += n
	return p, nil
}

// readLine appends a line with its newline. A line of more than most bytes is
// refused, unless most is 0.
func (c *checker) readLine(line []byte, most int) ([]byte, error) {
	for {
		b, err := c.readByte()
		if err != nil {
			return nil, err
		}
		line = append(line, b)
		if b == '\n' {
			return line, nil
		}
		if most > 0 && len(line) > most {
			return nil, c.bad("a number has more than %d digits", most)
		}
	}
}
