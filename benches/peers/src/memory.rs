//! How much memory many uploads at once take, against a slow server.

use std::path::Path;

use serde_json::{Value, json};

use crate::children::{Link, Scheme, Server};
use crate::compare::scheme_and_link;
use crate::measure::Task;
use crate::peers::{Outcome, Peer};

/// How many uploads are under way.
const COUNT: usize = 32;
/// How long each body is.
const BYTES: usize = 16 << 20;
/// What larder may take beside the bodies.
const MARGIN: usize = 32 << 20;

/// By how many bytes a client grew, its bodies included.
pub(crate) struct Peak {
    bytes: u64,
    peer: Peer,
    scheme: Scheme,
}

pub(crate) fn run(peers: &[Peer], schemes: &[Scheme], link: Link, directory: &Path) -> Outcome<Vec<Peak>> {
    let mut peaks = Vec::new();
    for &scheme in schemes {
        let server = Server::start(scheme, link, directory)?;
        for &peer in peers {
            eprintln!("{} {COUNT} uploads {}", scheme_and_link(scheme, link), peer.name());
            let bytes = server.measure(peer, Task::Upload { count: COUNT, bytes: BYTES })?.peak_bytes;
            peaks.push(Peak { bytes, peer, scheme });
        }
        drop(server.stop());
    }
    Ok(peaks)
}

pub(crate) fn print(peaks: &[Peak]) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (bodies, most) = (mib((COUNT * BYTES) as u64), mib((COUNT * BYTES + MARGIN) as u64));
    println!("{COUNT} uploads of {} MiB at once: peak of the resident memory, MiB", BYTES >> 20);
    for Peak { bytes, peer, scheme } in peaks {
        let (name, scheme, peak) = (peer.name(), scheme.name(), mib(*bytes));
        println!("{scheme:6} {name:14} {peak:8.1}  beside the bodies {:7.1}", peak - bodies);
    }
    println!("wanted of larder: less than {most:.0}");
}

pub(crate) fn to_json(peaks: &[Peak]) -> Value {
    let rows = peaks
        .iter()
        .map(|Peak { bytes, peer, scheme }| json!({ "peak_bytes": bytes, "peer": peer, "scheme": scheme }));
    json!({ "limit_bytes": COUNT * BYTES + MARGIN, "memory": rows.collect::<Vec<_>>() })
}
