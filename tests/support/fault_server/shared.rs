//! State shared by all connections: the bucket, the rules, the log, and whether the server is alive.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::bucket::Bucket;
use super::options::Options;
use super::plan::{Plan, Wait};
use super::request::Head;
use super::rule::Rule;

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Counts from 1.
    pub connection: u64,
    /// Counts from 1, over all connections.
    pub number: u64,
    pub method: String,
    /// As sent, percent-encoded.
    pub path: String,
    /// As sent, without the question mark.
    pub query: String,
    /// As sent, in order.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body that were read.
    pub body_len: u64,
    pub body_complete: bool,
    /// The answer that was sent, in whole or in part.
    pub status: Option<u16>,
    /// The bucket has done it. Not so if it refused, as with a 404 or 412.
    pub executed: bool,
    /// The bucket has executed or refused it, whether or not a client got an answer.
    pub is_over: bool,
}

impl Logged {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) bucket: Mutex<Bucket>,
    pub(super) rules: Mutex<Vec<Rule>>,
    pub(super) record: Mutex<Record>,
    /// The log has changed.
    pub(super) recorded: Condvar,
    pub(super) life: Mutex<Life>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) log: Vec<Logged>,
    pub(super) violations: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Life {
    /// Number of the gate at which requests wait now that a rule holds.
    gate: u64,
    /// Gates below this number are open.
    opened_gates: u64,
    running: bool,
    pub(super) opened: u64,
    open: HashMap<u64, TcpStream>,
    workers: Vec<JoinHandle<()>>,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            bucket: Mutex::new(Bucket::new(&options)),
            options,
            rules: Mutex::default(),
            record: Mutex::default(),
            recorded: Condvar::new(),
            life: Mutex::new(Life { running: true, ..Life::default() }),
            stopped: Condvar::new(),
        }
    }

    /// The actions of the rules for a request. Counts as a match of each rule that selects it.
    pub(super) fn plan(&self, head: &Head) -> Plan {
        let mut actions = Vec::new();
        for rule in lock(&self.rules).iter_mut() {
            actions.extend(rule.applies(head));
        }
        Plan::new(actions)
    }

    /// Logs a request and returns its number.
    pub(super) fn log(&self, connection: u64, head: &Head) -> u64 {
        let mut record = lock(&self.record);
        let number = u64::try_from(record.log.len()).unwrap_or(u64::MAX) + 1;
        record.log.push(Logged {
            connection,
            number,
            method: head.method.clone(),
            path: head.path.clone(),
            query: head.query.clone(),
            headers: head.headers.clone(),
            body_len: 0,
            body_complete: false,
            status: None,
            executed: false,
            is_over: false,
        });
        drop(record);
        self.recorded.notify_all();
        number
    }

    /// Notes more about a logged request.
    pub(super) fn note(&self, number: u64, change: impl FnOnce(&mut Logged)) {
        let mut record = lock(&self.record);
        if let Some(logged) = record.log.iter_mut().rev().find(|logged| logged.number == number) {
            change(logged);
        }
        drop(record);
        self.recorded.notify_all();
    }

    pub(super) fn violation(&self, connection: u64, what: &str) {
        lock(&self.record).violations.push(format!("connection {connection}: {what}"));
    }

    /// Waits, at most until the server stops, and then fails.
    pub(super) fn pause(&self, time: Duration) -> io::Result<()> {
        let life = lock(&self.life);
        let waited = self.stopped.wait_timeout_while(life, time, |life| life.running);
        if waited.unwrap_or_else(PoisonError::into_inner).0.running {
            return Ok(());
        }
        Err(io::Error::other("the server has stopped"))
    }

    /// Waits as a rule says, at most until the server stops, and then fails.
    pub(super) fn wait(&self, wait: Option<Wait>) -> io::Result<()> {
        match wait {
            None => self.pause(Duration::ZERO),
            Some(Wait::For(time)) => self.pause(time),
            Some(Wait::UntilReleased) => {
                let life = lock(&self.life);
                let gate = life.gate;
                let waited = self.stopped.wait_while(life, |life| life.running && life.opened_gates <= gate);
                let running = waited.unwrap_or_else(PoisonError::into_inner).running;
                if running { Ok(()) } else { Err(io::Error::other("the server has stopped")) }
            }
        }
    }

    /// Lets requests go on that a rule holds, also later ones.
    pub(super) fn release(&self) {
        let mut life = lock(&self.life);
        life.opened_gates = life.gate + 1;
        drop(life);
        self.stopped.notify_all();
    }

    /// Holds requests that begin to wait from now on.
    pub(super) fn hold_again(&self) {
        let mut life = lock(&self.life);
        life.gate = life.opened_gates;
    }

    /// Waits until the server stops.
    pub(super) fn hold(&self) {
        drop(self.stopped.wait_while(lock(&self.life), |life| life.running));
    }

    pub(super) fn is_running(&self) -> bool {
        lock(&self.life).running
    }

    pub(super) fn start(&self) {
        lock(&self.life).running = true;
    }

    /// Wakes everything that waits for time or for a client.
    pub(super) fn stop(&self) {
        let mut life = lock(&self.life);
        life.running = false;
        for stream in life.open.values() {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(life);
        self.stopped.notify_all();
    }

    /// Counts a connection in, unless the server has stopped.
    pub(super) fn register(&self, stream: &TcpStream) -> Option<u64> {
        let copy = stream.try_clone().ok()?;
        let mut life = lock(&self.life);
        if !life.running {
            return None;
        }
        life.opened += 1;
        let connection = life.opened;
        life.open.insert(connection, copy);
        Some(connection)
    }

    pub(super) fn forget(&self, connection: u64) {
        lock(&self.life).open.remove(&connection);
    }

    pub(super) fn add_worker(&self, worker: JoinHandle<()>) {
        let mut life = lock(&self.life);
        life.workers.retain(|worker| !worker.is_finished());
        life.workers.push(worker);
    }

    pub(super) fn workers(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut lock(&self.life).workers)
    }
}

/// Locks, also after a panic elsewhere, so that one failed test does not hide behind another.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
