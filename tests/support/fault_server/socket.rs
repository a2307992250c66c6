//! One connection's bytes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

/// Bytes of a head at most. Larger ones are no proper requests here.
const MAX_HEAD: usize = 64 << 10;

/// An error of reading a request.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client has gone.
    Gone,
    /// The client has sent what it must not.
    Violation(String),
}

/// A connection and what was read from it ahead of need.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Small answers must not wait for acknowledgements. Without the option they come late, but they come.
        let _ = stream.set_nodelay(true);
        Self { stream, ahead: Vec::new() }
    }

    /// A whole head with the empty line at its end, or nothing if the client has closed before it.
    pub(super) fn read_head(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                let rest = self.ahead.split_off(end + 4);
                return Ok(Some(std::mem::replace(&mut self.ahead, rest)));
            }
            let bare = |at: usize| self.ahead[at] == b'\n' && (at == 0 || self.ahead[at - 1] != b'\r');
            if (0..self.ahead.len()).any(bare) {
                return Err(Broken::Violation("a line of the head ends with LF only".to_owned()));
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(Broken::Violation("the head is too large".to_owned()));
            }
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(0) | Err(_) if self.ahead.is_empty() => return Ok(None),
                Ok(0) | Err(_) => return Err(Broken::Gone),
                Ok(read) => self.ahead.extend_from_slice(&part[..read]),
            }
        }
    }

    /// Reads this number of bytes of a body, or fewer if the client closes.
    pub(super) fn read_body(&mut self, length: u64) -> Vec<u8> {
        let ahead = self.ahead.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let rest = self.ahead.split_off(ahead);
        let mut body = std::mem::replace(&mut self.ahead, rest);
        let missing = length - body.len() as u64;
        // A failure leaves what came before it, and that is all there is to know.
        let _ = (&self.stream).take(missing).read_to_end(&mut body);
        body
    }

    /// Bytes arrived before they were asked for.
    pub(super) fn has_more(&self) -> bool {
        !self.ahead.is_empty()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads until the client closes or the server stops.
    pub(super) fn wait_for_close(&mut self) {
        let mut part = [0; 4096];
        while self.stream.read(&mut part).is_ok_and(|read| read > 0) {}
    }

    pub(super) fn close(&mut self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
