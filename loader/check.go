package loader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strconv"
)

// Limits of a pickle. They are above what real checkpoints need, so that reading
// any pickle takes less than 100 MB beside its own bytes, and about a second: a
// state dict takes some 2 KB and 50 operations for each tensor.
const (
	maxPickle     = 256 << 20 // bytes of the stream
	maxObjects    = 76 << 20  // estimated bytes of the objects that it builds and of their list
	maxOperations = 1 << 23
	maxMarks      = 10_000  // marks that are open at once
	maxMemo       = 1 << 26 // keys of the memo
	maxDigits     = 1_000   // digits of a decimal integer
	maxLong       = 1_024   // bytes of a binary integer
	maxText       = 1 << 20 // bytes of a string
	maxBytes      = 1 << 16 // bytes of a bytes object that is kept: no tensor needs them
	maxNesting    = 1_000   // levels of containers that are walked for tensors
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
	item int  // and for each item above the mark

	refused bool // known, so that Scan can go on, but not allowed in a checkpoint
}

// Estimates of the memory that gopickle, the objects and the walk over them take
// for each.
const (
	costItem   = 1  // no memory but that of the stack
	costNumber = 16 // one that does not fit into an interface
	costText   = 32 // without its bytes
	costGlobal = 640
	costTuple  = 96 // or list, without its items
	costDict   = 240
	costKept   = 32 // an item in one of them
	costEntry  = 56 // half of an entry in a dict
	costObject = 192
	costPut    = 72
	costStack  = 40 // an item on the stack
)

// opcodes are all operations. Refused are those that torch.save never writes and
// that would need outside help: extension registry, out-of-band buffers, textual
// persistent ids.
var opcodes = [256]opcode{
	'(': {cost: costStack},
	'.': {pop: 1, cost: costItem},
	'0': {pop: 1, cost: costItem},
	'1': {mark: true, cost: costItem},
	'2': {pop: 1, push: 2, cost: costItem},

	'N': {push: 1, cost: costItem}, 0x88: {push: 1, cost: costItem}, 0x89: {push: 1, cost: costItem},
	'F': {kind: argDigits, push: 1, cost: costNumber}, 'G': {kind: argFixed, size: 8, push: 1, cost: costNumber},
	'I': {kind: argDigits, push: 1, cost: costNumber}, 'L': {kind: argDigits, push: 1, cost: costNumber},
	'J': {kind: argFixed, size: 4, push: 1, cost: costNumber},
	'K': {kind: argFixed, size: 1, push: 1, cost: costItem},
	'M': {kind: argFixed, size: 2, push: 1, cost: costNumber},

	0x8a: {kind: argCounted, size: 1, push: 1, cost: costText}, 0x8b: {kind: argCounted, size: 4, push: 1, cost: costText},
	'S': {kind: argLine, push: 1, cost: costText}, 'V': {kind: argLine, push: 1, cost: costText},
	'T': {kind: argCounted, size: 4, push: 1, cost: costText}, 'U': {kind: argCounted, size: 1, push: 1, cost: costText},
	'X': {kind: argCounted, size: 4, push: 1, cost: costText}, 0x8c: {kind: argCounted, size: 1, push: 1, cost: costText},
	0x8d: {kind: argCounted, size: 8, push: 1, cost: costText},
	'B':  {kind: argCounted, size: 4, push: 1, cost: costText}, 'C': {kind: argCounted, size: 1, push: 1, cost: costText},
	0x8e: {kind: argCounted, size: 8, push: 1, cost: costText}, 0x96: {kind: argCounted, size: 8, push: 1, cost: costText},

	')': {push: 1, cost: costTuple}, 't': {mark: true, push: 1, cost: costTuple, item: costKept},
	0x85: {pop: 1, push: 1, cost: costTuple}, 0x86: {pop: 2, push: 1, cost: costTuple}, 0x87: {pop: 3, push: 1, cost: costTuple},
	']': {push: 1, cost: costTuple + 2*costKept}, 'l': {mark: true, push: 1, cost: costTuple, item: costKept},
	'a': {pop: 2, push: 1, cost: costKept}, 'e': {mark: true, pop: 1, push: 1, cost: costItem, item: costKept},
	'}': {push: 1, cost: costDict}, 'd': {mark: true, push: 1, cost: costDict, item: costEntry},
	's': {pop: 3, push: 1, cost: 2 * costEntry}, 'u': {mark: true, pop: 1, push: 1, cost: costItem, item: costEntry},
	0x8f: {push: 1, cost: costTuple}, 0x90: {mark: true, pop: 1, push: 1, cost: costItem, item: costKept},
	0x91: {mark: true, push: 1, cost: costTuple, item: costKept},

	'c': {kind: argLines, push: 1, cost: costGlobal}, 0x93: {pop: 2, push: 1, cost: costGlobal},
	'i': {kind: argLines, mark: true, push: 1, cost: costGlobal + costObject, item: costKept},
	'o': {mark: true, push: 1, cost: costObject, item: costKept},
	'R': {pop: 2, push: 1, cost: costObject}, 'b': {pop: 2, push: 1, cost: costKept},
	0x81: {pop: 2, push: 1, cost: costObject}, 0x92: {pop: 3, push: 1, cost: costObject},
	'Q': {pop: 1, push: 1, cost: 2 * costObject},

	'g': {kind: argDigits, push: 1, cost: costItem}, 'h': {kind: argFixed, size: 1, push: 1, cost: costItem},
	'j': {kind: argFixed, size: 4, push: 1, cost: costItem},
	'p': {kind: argDigits, pop: 1, push: 1, cost: costItem}, 'q': {kind: argFixed, size: 1, pop: 1, push: 1, cost: costItem},
	'r': {kind: argFixed, size: 4, pop: 1, push: 1, cost: costItem}, 0x94: {pop: 1, push: 1, cost: costItem},

	0x80: {kind: argFixed, size: 1, cost: costItem},
	0x95: {kind: argFixed, size: 8, cost: costItem},
	0x98: {pop: 1, push: 1, cost: costItem},

	'P':  {kind: argLine, push: 1, cost: costText, refused: true},
	0x82: {kind: argFixed, size: 1, push: 1, cost: costGlobal, refused: true},
	0x83: {kind: argFixed, size: 2, push: 1, cost: costGlobal, refused: true},
	0x84: {kind: argFixed, size: 4, push: 1, cost: costGlobal, refused: true},
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

	levels     []int // items on the stack, per open mark
	depth      int   // items on the stack and open marks
	deepest    int
	stored     bits // keys of the memo
	keys       int  // how many they are
	fetched    bits // keys that are asked for
	operations int
	cost       int64 // but for the stack
	frame      int64 // end of the current frame, 0 for none

	trace *tracer // nil but for Scan
	err   error   // the first fault

	// As an io.Reader, the checker gives the equivalent stream of each operation
	// that it has checked. wanted are the keys of the memo that it keeps.
	wanted bits
	out    bytes.Buffer
	done   bool
}

// bits is a set of small numbers.
type bits []uint64

func (b bits) has(i uint64) bool { return i/64 < uint64(len(b)) && b[i/64]>>(i%64)&1 == 1 }

func (b *bits) add(i uint64) {
	if n := int(i/64) + 1; n > len(*b) {
		*b = append(*b, make([]uint64, n-len(*b))...)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

// checkPickle checks the pickle at an offset of r, which has size bytes, and
// returns where it ends, what its objects are estimated to take, and an equivalent
// stream that is safe for gopickle, which checks the bytes again as they are read:
// the file may change.
//
// Every length is held against the bytes that are left, the stack, marks and
// memo are followed, and the memory that the objects will take is summed.
// What comes out differs from what went in where gopickle would fail on good
// input or spend too much on bad: frames are dropped, empty integers become 0,
// sets become lists, all classes are looked up by FindClass (GLOBAL, INST,
// with ownPrefix) or as a persistent id (STACK_GLOBAL, a pair of strings), escaped
// strings are written out, long bytes objects become empty, NEWOBJ_EX becomes a
// NEWOBJ with the two arguments (args, kwargs), and the memo keeps only what is
// asked for later.
func checkPickle(r io.ReaderAt, off, size int64) (stream *checker, end, cost int64, err error) {
	first := newChecker(r, off, size)
	if err := first.run(); err != nil {
		return nil, 0, 0, err
	}
	stream = newChecker(r, off, size)
	stream.wanted = first.fetched
	return stream, first.pos, first.taken(), nil
}

func newChecker(r io.ReaderAt, off, size int64) *checker {
	limit := min(size, off+maxPickle)
	return &checker{
		in:  bufio.NewReaderSize(io.NewSectionReader(r, off, limit-off), 1<<16),
		pos: off, limit: limit, long: limit < size,
		levels: []int{0},
	}
}

// run follows the pickle to its STOP.
func (c *checker) run() error {
	for !c.done && c.err == nil {
		c.out.Reset()
		c.next()
	}
	return c.err
}

// next checks one operation and puts its equivalent into out.
func (c *checker) next() {
	op, err := c.readByte()
	if err == nil {
		err = c.step(op)
	}
	c.done, c.err = op == '.', err
}

func (c *checker) fill() error {
	for c.out.Len() == 0 {
		switch {
		case c.err != nil:
			return c.err
		case c.done:
			return io.EOF
		}
		c.next()
	}
	return nil
}

// Read and ReadByte give the equivalent stream.
func (c *checker) Read(p []byte) (int, error) {
	if err := c.fill(); err != nil {
		return 0, err
	}
	return c.out.Read(p)
}

// ReadByte is Read of one byte.
func (c *checker) ReadByte() (byte, error) {
	if err := c.fill(); err != nil {
		return 0, err
	}
	return c.out.ReadByte()
}

// taken is the estimate of the memory so far.
func (c *checker) taken() int64 { return c.cost + costStack*int64(c.deepest) }

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
	if c.operations++; c.operations > maxOperations {
		return c.bad("it has more than %d operations", maxOperations)
	}
	if c.frame != 0 && at >= c.frame {
		c.frame = 0
	}
	arg, err := c.readArg(op, o)
	if err != nil {
		return err
	}
	if c.frame != 0 && c.pos > c.frame {
		return c.bad("an operation crosses the end of its frame")
	}
	if err := c.follow(op, o); err != nil {
		return err
	}
	key, err := c.remember(op, arg)
	if err != nil {
		return err
	}
	c.cost += int64(o.cost) + 4*int64(len(arg))
	if c.taken() > maxObjects {
		return c.bad("its objects would take more than %d bytes: save the tensors alone, in several files or as safetensors", int64(maxObjects))
	}
	if err := c.limits(op, arg); err != nil {
		return err
	}
	if c.trace != nil {
		return c.trace.step(op, o, arg, key, at)
	}
	c.emit(op, arg, key)
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
		c.deeper(1)
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
		c.cost += int64(items) * int64(o.item)
		c.depth -= items + 1
	}
	if *top < o.pop {
		return c.bad("the operation 0x%02x wants %d items on the stack, there are %d", op, o.pop, *top)
	}
	*top += o.push - o.pop
	c.deeper(o.push - o.pop)
	return nil
}

func (c *checker) deeper(n int) {
	c.depth += n
	c.deepest = max(c.deepest, c.depth)
}

// remember follows the memo, and returns the key of an operation that uses it.
func (c *checker) remember(op byte, arg []byte) (key uint64, err error) {
	switch op {
	case 'p', 'q', 'r', 'g', 'h', 'j':
		if key, err = memoKey(op, arg); err != nil {
			return 0, c.bad("the memo key %.20q is not a number", arg)
		}
	case 0x94: // MEMOIZE takes the number of keys for its key
		key = uint64(c.keys)
	default:
		return 0, nil
	}
	if key >= maxMemo {
		return 0, c.bad("the memo key %d is too large", key)
	}
	switch op {
	case 'g', 'h', 'j':
		if !c.stored.has(key) {
			return 0, c.bad("it recalls item %d, which was never stored", key)
		}
		if !c.fetched.has(key) {
			c.fetched.add(key)
			c.cost += costPut
		}
	default:
		if !c.stored.has(key) {
			c.stored.add(key)
			c.keys++
		}
	}
	return key, nil
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
func (c *checker) emit(op byte, arg []byte, key uint64) {
	switch {
	case op == 'p' || op == 'q' || op == 'r' || op == 0x94:
		if c.wanted.has(key) {
			c.out.WriteByte('r')
			c.out.Write(binary.LittleEndian.AppendUint32(nil, uint32(key)))
		}
		return
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
// included. It allocates no more than the file holds and the limits allow. Of a
// bytes object that no one needs it returns the length alone, as 0.
func (c *checker) readArg(op byte, o opcode) ([]byte, error) {
	switch o.kind {
	case argFixed:
		return c.read(nil, o.size)
	case argCounted:
		prefix, err := c.read(make([]byte, 0, 16), o.size)
		if err != nil {
			return nil, err
		}
		var wide [8]byte
		copy(wide[:], prefix)
		n := binary.LittleEndian.Uint64(wide[:])
		if n > uint64(c.limit-c.pos) {
			return nil, c.bad("a length of %d bytes exceeds the %d that follow: the file is damaged or cut short", n, c.limit-c.pos)
		}
		switch isBytes := op == 'B' || op == 0x8e || op == 0x96 || op == 'T'; {
		case isBytes && n > maxBytes:
			clear(prefix)
			return prefix, c.discard(int64(n))
		case n > maxText:
			return nil, c.bad("a string or number has %d bytes, at most %d are allowed", n, maxText)
		}
		return c.read(prefix, int(n))
	case argLine:
		return c.readLine(nil, maxText)
	case argDigits:
		return c.readLine(nil, maxDigits)
	case argLines:
		module, err := c.readLine(nil, maxText)
		if err != nil {
			return nil, err
		}
		return c.readLine(module, maxText)
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

// read appends n bytes to p.
func (c *checker) read(p []byte, n int) ([]byte, error) {
	if int64(n) > c.limit-c.pos {
		return nil, c.short()
	}
	start := len(p)
	p = slices.Grow(p, n)[:start+n]
	if _, err := io.ReadFull(c.in, p[start:]); err != nil {
		return nil, c.ended(err)
	}
	c.pos += int64(n)
	return p, nil
}

// discard passes over n bytes, which the file has.
func (c *checker) discard(n int64) error {
	if _, err := io.CopyN(io.Discard, c.in, n); err != nil {
		return c.ended(err)
	}
	c.pos += n
	return nil
}

// ended says that the file has become shorter, where that is what an error means.
func (c *checker) ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return c.short()
	}
	return err
}

// readLine appends a line of at most so many bytes, with its newline.
func (c *checker) readLine(line []byte, most int) ([]byte, error) {
	for start := len(line); ; {
		b, err := c.readByte()
		if err != nil {
			return nil, err
		}
		line = append(line, b)
		if b == '\n' {
			return line, nil
		}
		if len(line)-start > most {
			return nil, c.bad("a line has more than %d characters", most)
		}
	}
}
