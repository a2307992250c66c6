//! Brings the copies of a bucket's metadata in a local directory to the state of the bucket.
//! Run with: `cargo run --release --example refresh -- --store s3://BUCKET/STORE --cache DIR`

#[macro_use]
mod cli;

use std::process::ExitCode;

use cli::signals::interruptible;
use cli::{Access, Outcome, StoreArguments, input};
use futures::executor::block_on;
use larder::store::Datastore;

fn main() -> ExitCode {
    cli::run(&usage(), command)
}

fn usage() -> String {
    format!(
        "usage: refresh --store s3://BUCKET/STORE --cache DIR [options]

{}
{}",
        cli::STORE_USAGE,
        cli::JSON_USAGE
    )
}

fn command(mut parser: lexopt::Parser) -> Outcome<()> {
    let (mut store, mut as_json) = (StoreArguments::default(), false);
    while let Some(argument) = cli::next(&mut parser)? {
        if argument == "--json" {
            as_json = true;
        } else if !store.take(&argument, &mut parser)? {
            return Err(input(format!("{argument}: there is no such option")));
        }
    }
    let runtime = cli::runtime();
    let start = runtime.monotonic();
    let refresh = async |store: Datastore| interruptible(async { Ok(store.refresh().await?) }).await;
    let (done, requests) = block_on(store.with(&runtime, Access::Write, refresh))?;
    let seconds = runtime.monotonic().saturating_sub(start).as_secs_f64();
    if as_json {
        let report = serde_json::json!({
            "objects": done.objects,
            "fetched": done.fetched,
            "bytes": done.bytes,
            "seconds": seconds,
            "requests": requests,
        });
        println!("{report}");
    } else {
        println!("{} objects, {} fetched, {} bytes; {seconds:.1} s", done.objects, done.fetched, done.bytes);
        cli::tell_requests(requests.as_ref());
    }
    Ok(())
}
