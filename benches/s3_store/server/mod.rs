//! An S3 server that costs little, so that what is measured is the client.
//!
//! A thread for each connection, objects in memory. Signatures are not verified; bodies are compared with their signed hash, and
//! tags follow the contents. It can whatever a store asks for: conditions, ranges, copies, deletions of many, listings in pages.
//!
//! It prints `ready PORT` and then obeys its standard input, a line each, answered by a line each:
//!
//! | command | what happens |
//! |---|---|
//! | `delay MS` | every answer comes so much later |
//! | `rate BYTES` | so many bytes of bodies a second pass in each direction, over all connections together; 0: as fast as it goes |
//! | `fill STORE COUNT` | a store gets so many chunks with empty bodies |
//! | `pack KEY BYTES` | there is an object of so many zeros |
//! | `requests` | answers with the number of requests by method and kind of object since the last time, in JSON |

mod answer;
pub(crate) mod bucket;
mod link;
mod request;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use answer::{Answer, answer, http_date};
use bucket::Objects;
use bytes::Bytes;
use link::Link;
use request::Request;

/// How much is read or written between two looks at the rate.
const PIECE: usize = 64 << 10;

struct Shared {
    counts: Mutex<BTreeMap<String, u64>>,
    /// In milliseconds.
    delay: AtomicU64,
    incoming: Link,
    objects: Mutex<Objects>,
    outgoing: Link,
}

/// Serves until standard input ends.
pub(crate) fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("ready {}", listener.local_addr()?.port());
    let shared = Arc::new(Shared {
        counts: Mutex::default(),
        delay: AtomicU64::new(0),
        incoming: Link::new(),
        objects: Mutex::default(),
        outgoing: Link::new(),
    });
    let accepting = Arc::clone(&shared);
    std::thread::spawn(move || -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let shared = Arc::clone(&accepting);
            std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                // A client that goes away ends its connection and nothing else.
                if let Err(error) = connection(&stream, &shared)
                    && error.kind() == io::ErrorKind::InvalidData
                {
                    eprintln!("server: {error}");
                }
            })?;
        }
    });
    for line in io::stdin().lines() {
        let answered = obey(&line?, &shared).unwrap_or_else(|| "what?".to_owned());
        println!("{answered}");
    }
    Ok(())
}

fn obey(line: &str, shared: &Shared) -> Option<String> {
    let mut words = line.split_whitespace();
    let command = words.next()?;
    let number = |words: &mut dyn Iterator<Item = &str>| words.next()?.parse::<u64>().ok();
    match command {
        "delay" => shared.delay.store(number(&mut words)?, Ordering::Relaxed),
        "rate" => {
            let rate = number(&mut words)?;
            shared.incoming.set_rate(rate);
            shared.outgoing.set_rate(rate);
        }
        "fill" => {
            let (store, count) = (words.next()?, number(&mut words)?);
            bucket::fill(&mut shared.objects.lock().unwrap_or_else(PoisonError::into_inner), store, count);
        }
        "pack" => {
            let (key, bytes) = (words.next()?, number(&mut words)?);
            let mut objects = shared.objects.lock().unwrap_or_else(PoisonError::into_inner);
            bucket::add_zeros(&mut objects, key, usize::try_from(bytes).ok()?);
        }
        "requests" => {
            let counts = std::mem::take(&mut *shared.counts.lock().unwrap_or_else(PoisonError::into_inner));
            return serde_json::to_string(&counts).ok();
        }
        _ => return None,
    }
    Some("done".to_owned())
}

fn connection(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(PIECE, stream);
    while let Some(request) = Request::read(&mut reader)? {
        if request.header("expect").is_some() {
            (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length = request.body_length().ok_or(io::ErrorKind::InvalidData)?;
        let mut body = vec![0; length];
        for piece in body.chunks_mut(PIECE) {
            reader.read_exact(piece)?;
            shared.incoming.pass(piece.len());
        }
        *shared.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(request.class()).or_default() +=
            1;
        let answer = answer(&request, Bytes::from(body), &shared.objects);
        std::thread::sleep(Duration::from_millis(shared.delay.load(Ordering::Relaxed)));
        write(stream, &answer, request.method != "HEAD", shared)?;
        if request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            break;
        }
    }
    Ok(())
}

fn write(mut stream: &TcpStream, answer: &Answer, with_body: bool, shared: &Shared) -> io::Result<()> {
    let Answer { body, headers, status } = answer;
    let (date, length) = (http_date(SystemTime::now()), body.len());
    let head = format!("HTTP/1.1 {status}\r\ndate: {date}\r\n{headers}x-amz-request-id: 1\r\n");
    // One to say that there is nothing must not say how long nothing is.
    let head = if status.starts_with("204") {
        format!("{head}\r\n")
    } else {
        format!("{head}content-length: {length}\r\n\r\n")
    };
    let body = if with_body { &body[..] } else { b"" };
    let (first, rest) = body.split_at(body.len().min(PIECE));
    shared.outgoing.pass(first.len());
    // Head and body leave together.
    stream.write_all(&[head.as_bytes(), first].concat())?;
    for piece in rest.chunks(PIECE) {
        shared.outgoing.pass(piece.len());
        stream.write_all(piece)?;
    }
    Ok(())
}
