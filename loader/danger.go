package loader

import (
	"slices"
	"strings"
)

// NameClass says what is known of a name in a pickle.
type NameClass string

// The classes of names.
const (
	// Known names are on fettle's list: PyTorch's own ways to write tensors, and
	// classes that are nothing but data.
	Known NameClass = "known"
	// Unknown names may be harmless or not: fettle has no opinion.
	Unknown NameClass = "unknown"
	// Dangerous names can run code, load more code, or reach files, processes or
	// the network.
	Dangerous NameClass = "dangerous"
)

// dangerousModules are modules of which no function is safe to call with a
// stranger's arguments, by their first or any later part. Names of Python 2
// stand here too: Python 3 maps them.
var dangerousModules = words(`
	os posix nt posixpath ntpath subprocess _posixsubprocess popen2 sys sysconfig site builtins __builtins__
	importlib imp _imp zipimport pkgutil runpy ensurepip pip venv distutils setuptools _distutils_hack pkg_resources
	pickle _pickle pickletools dill cloudpickle jsonpickle joblib marshal shelve dbm copyreg
	code codeop codecs pty tty pdb bdb cmd cProfile profile pstats trace timeit doctest unittest pydoc lib2to3 idlelib
	ctypes _ctypes cffi mmap fcntl resource gc inspect linecache dis types
	socket _socket socketserver ssl select selectors asyncio asyncore asynchat http httplib urllib urllib2 urllib3 requests aiohttp httpx
	ftplib telnetlib smtplib poplib imaplib nntplib xmlrpc xmlrpclib webbrowser antigravity tkinter turtle cgi wsgiref
	shutil tempfile io _io pathlib glob fileinput zipfile tarfile gzip bz2 lzma sqlite3 _sqlite3 netrc yaml
	multiprocessing _multiprocessing threading _thread thread concurrent sched signal _signal atexit
	operator _operator functools _functools platform shlex crypt readline rlcompleter getpass pwd grp winreg _winreg _winapi msvcrt
	IPython ipykernel fabric paramiko psutil pexpect fsspec s3fs boto3
`)

// systemModules are those that are meant wherever their name stands, even with
// an underscore before it, as random._os.
var systemModules = words(`os posix nt subprocess sys builtins importlib runpy pickle ctypes socket shutil`)

// dangerousNames are single functions and classes of other modules, and, with a
// dot at the end, all that is below a module.
var dangerousNames = words(`
	torch.load torch.save torch.compile torch.from_file torch.storage._load_from_bytes torch.jit. torch.hub. torch.package. torch.ops. torch.classes.
	torch.serialization. torch.multiprocessing. torch.utils.cpp_extension. torch.utils.collect_env. torch.utils.bottleneck.
	torch.utils._config_module. torch.utils.data.datapipes.utils.decoder. torch.testing._internal. torch.fx.graph_module.
	torch.distributed.rpc. torch.distributed.run. torch.distributed.launch. torch.distributed.elastic. torch.distributed.launcher.
	torch._dynamo. torch._inductor. torch._ops. torch._classes. torch._C.import_ir_module torch._C._load_for_lite_interpreter torch._C.PyTorchFileReader
	numpy.load numpy.save numpy.fromfile numpy.memmap numpy.DataSource numpy.f2py. numpy.testing. numpy.distutils. numpy.ctypeslib. numpy.lib.npyio.
	pandas.read_pickle pandas.eval pandas.io. scipy.io. transformers.pipeline transformers.dynamic_module_utils.
	logging.config. logging.handlers. logging.FileHandler logging.basicConfig
	typing.get_type_hints typing.ForwardRef string.Formatter test.support.
`)

func words(text string) map[string]bool {
	all := map[string]bool{}
	for _, word := range strings.Fields(text) {
		all[word] = true
	}
	return all
}

// classify says what is known of a global of a pickle. What fettle knows beats
// the lists of dangers: builtins.set is known, builtins.eval is not. Protocol 4
// follows attributes, so a module of the system may stand anywhere in a name:
// torch.serialization.os.system is os.system.
func classify(module, name string) NameClass {
	full := canonical(module, name)
	switch parts := strings.Split(full, "."); {
	case isKnown(full):
		return Known
	case full == "functools.partial", parts[0] == "builtins" && len(parts) == 2 && isException(parts[1]):
		return Unknown // they hold what is given to them and call nothing
	case dangerousModules[parts[0]] || dangerousNames[full] || slices.ContainsFunc(parts, isInside):
		return Dangerous
	}
	for i := range full {
		if full[i] == '.' && dangerousNames[full[:i+1]] {
			return Dangerous
		}
	}
	return Unknown
}

// isInside reports whether a part of a name leads out of its module: into the
// system, or into Python itself, as __globals__ and __subclasses__ do.
func isInside(part string) bool {
	if systemModules[strings.Trim(part, "_")] {
		return true
	}
	switch part {
	case "__torch__", "__main__", "__mp_main__", "__future__":
		return false
	}
	return len(part) > 4 && strings.HasPrefix(part, "__") && strings.HasSuffix(part, "__")
}

func isException(name string) bool {
	return strings.HasSuffix(name, "Error") || strings.HasSuffix(name, "Exception") || strings.HasSuffix(name, "Warning")
}

// isKnown reports whether a name is one that tensors are made of, or harmless.
func isKnown(full string) bool {
	if rebuilders[full] != nil || isHarmless(full) {
		return true
	}
	dot := strings.LastIndexByte(full, '.')
	module, name := full[:max(dot, 0)], full[dot+1:]
	_, isStorage := storageTypes[name]
	_, isType := torchTypes[name]
	return isStorage && storageModules[module] || isType && module == "torch"
}
