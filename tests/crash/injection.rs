//! System calls that fail on request: the parent traces a thread of its child, and lets calls return errors without being executed.
//!
//! The child says what it wants by calls that make no sense otherwise: a signal to itself begins the tracing, and `getpgid` of a number that is
//! no process gives an order or asks a question. So nothing in the library knows of it, and no call is missed, whoever makes it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgid, gettid};

const CHILD: &str = "LARDER_TRACED";
/// An order: the number of the call, the number of the error from this bit on, and whether all later calls fail too.
const ORDER: i32 = 0x4000_0000;
const ERROR_BIT: i32 = 20;
const FOREVER: i32 = 0x0800_0000;
/// A question that ends the tracing: the number of calls that the order is about.
const END: i32 = 0x5000_0000;
/// A question that follows: the number of the first call that failed, and one.
const WHICH: i32 = 0x6000_0000;

/// The calls that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub error: Errno,
    /// All calls from the first one on.
    pub forever: bool,
    /// The first, of those that can have this error.
    pub nth: u64,
}

/// What came of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// The number of the call that failed first; `None` if there were fewer.
    pub call: Option<i64>,
}

fn ask(code: i32) -> i32 {
    getpgid(Some(Pid::from_raw(code))).expect("nobody traces this process").as_raw()
}

/// Makes a call during which others fail.
pub(crate) fn with<T>(fault: Fault, work: impl FnOnce() -> T) -> (T, Told) {
    nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
    let forever = if fault.forever { FOREVER } else { 0 };
    ask(ORDER | forever | (fault.error as i32) << ERROR_BIT | i32::try_from(fault.nth).unwrap());
    let done = work();
    let which = ask(WHICH);
    ask(END);
    (done, Told { call: (which > 1).then(|| i64::from(which - 2)) })
}

/// Returns `true` in the child, when its parent traces this thread.
pub(crate) fn is_traced() -> bool {
    if std::env::var_os(CHILD).is_none() {
        return false;
    }
    println!("\nTHREAD {}", gettid());
    io::stdout().flush().unwrap();
    io::stdin().read_exact(&mut [0]).unwrap();
    true
}

/// Runs a test of this binary in a child with a thread that is traced. Returns `false` where that is not possible.
pub(crate) fn trace(test: &str) -> bool {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        eprintln!("skipped: the registers of this processor are not known here");
        return false;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let thread = lines.find_map(|line| line.unwrap().strip_prefix("THREAD ").map(|id| id.parse().unwrap()));
    let thread = Pid::from_raw(thread.expect("the child ended"));
    if let Err(error) = ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD) {
        eprintln!("skipped: this process may not trace another: {error}");
        child.kill().unwrap();
        child.wait().unwrap();
        return false;
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    Tracer::default().run(thread);
    assert!(child.wait().unwrap().success(), "see the output of the child");
    true
}

#[derive(Default)]
struct Tracer {
    answer: Option<i64>,
    calls: u64,
    fault: Option<Fault>,
    first: Option<i64>,
    is_in_call: bool,
    is_tracing: bool,
}

impl Tracer {
    fn run(mut self, thread: Pid) {
        loop {
            let mut signal = None;
            match waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return,
                WaitStatus::Stopped(_, Signal::SIGUSR1) => self.is_tracing = true,
                WaitStatus::Stopped(_, other) => signal = Some(other),
                WaitStatus::PtraceSyscall(_) => {
                    self.is_in_call = !self.is_in_call;
                    if self.is_in_call { self.begin(thread) } else { self.end(thread) }
                }
                _ => {}
            }
            let resumed =
                if self.is_tracing { ptrace::syscall(thread, signal) } else { ptrace::cont(thread, signal) };
            match resumed {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A call begins: decides whether it is executed.
    fn begin(&mut self, thread: Pid) {
        let mut registers = ptrace::getregs(thread).unwrap();
        let call = i64::try_from(registers.orig_rax).unwrap();
        let (first, second, third) = (registers.rdi, registers.rsi, registers.rdx);
        self.answer = if call == libc::SYS_getpgid {
            Some(self.obey(u32::try_from(first & 0xffff_ffff).unwrap().cast_signed()))
        } else {
            self.failure(call, second, third)
        };
        if self.answer.is_some() {
            registers.orig_rax = u64::MAX;
            ptrace::setregs(thread, registers).unwrap();
        }
    }

    fn end(&mut self, thread: Pid) {
        if let Some(answer) = self.answer.take() {
            let mut registers = ptrace::getregs(thread).unwrap();
            registers.rax = answer.cast_unsigned();
            ptrace::setregs(thread, registers).unwrap();
        }
        if self.fault.is_none() && self.is_tracing {
            self.is_tracing = false;
        }
    }

    fn obey(&mut self, code: i32) -> i64 {
        match code {
            END => {
                self.fault = None;
                1 + i64::try_from(self.calls).unwrap()
            }
            WHICH => self.first.map_or(1, |call| call + 2),
            _ => {
                let error = Errno::from_raw((code & (FOREVER - 1)) >> ERROR_BIT);
                let nth = u64::try_from(code & ((1 << ERROR_BIT) - 1)).unwrap();
                self.fault = Some(Fault { error, forever: code & FOREVER != 0, nth });
                (self.calls, self.first) = (0, None);
                1
            }
        }
    }

    /// The result of a call that fails.
    fn failure(&mut self, call: i64, second: u64, third: u64) -> Option<i64> {
        let fault = self.fault?;
        let creates = match call {
            libc::SYS_open => second & libc::O_CREAT as u64 != 0,
            libc::SYS_openat => third & libc::O_CREAT as u64 != 0,
            _ => false,
        };
        let duplicates = call == libc::SYS_fcntl && second == libc::F_DUPFD_CLOEXEC as u64;
        let is_meant = match fault.error {
            Errno::ENOSPC | Errno::EDQUOT => creates || ALLOCATING.contains(&call),
            Errno::EMFILE => OPENING.contains(&call) || duplicates,
            Errno::EINTR => INTERRUPTIBLE.contains(&call),
            _ => ALLOCATING.contains(&call) || OPENING.contains(&call) || OTHERS.contains(&call),
        };
        if !is_meant {
            return None;
        }
        self.calls += 1;
        let fails = self.calls == fault.nth || (fault.forever && self.calls > fault.nth);
        if fails && self.first.is_none() {
            self.first = Some(call);
        }
        fails.then(|| -(fault.error as i64))
    }
}

/// Calls that need space on the disk.
const ALLOCATING: &[i64] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
];
/// Calls that need a descriptor.
const OPENING: &[i64] = &[libc::SYS_open, libc::SYS_openat, libc::SYS_openat2];
/// Calls that wait, and that a signal interrupts.
const INTERRUPTIBLE: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
];
/// Other calls that look at files or change them. A failing `close` closes nothing here, unlike that of a system, and is left out.
const OTHERS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_lseek,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_flistxattr,
    libc::SYS_llistxattr,
    libc::SYS_removexattr,
    libc::SYS_fremovexattr,
];

/// Returns `true` for a call that flushes.
pub(crate) fn is_flush(call: i64) -> bool {
    [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync].contains(&call)
}
