//! Finds out what an S3 server can do, and says it as a person would want to read it.
//! Run with: `cargo run --example s3_check -- --endpoint URL --store s3://BUCKET/STORE`

#[macro_use]
mod cli;

use std::process::ExitCode;

use cli::input;
use cli::s3::{S3_USAGE, S3Arguments, accepting};
use futures::executor::block_on;
use larder::s3::{S3Capabilities, Support};

fn main() -> ExitCode {
    let usage = format!(
        "usage: s3_check --store s3://BUCKET/STORE [options]\n       s3_check --bucket NAME [options]\n\n\
         \x20 --store PLACE        where a store is or will be: nothing outside of it is touched\n\
         \x20 --bucket NAME        the bucket, as for a store that is all of it; it must exist\n\
         {S3_USAGE}\n{}",
        cli::JSON_USAGE
    );
    cli::run(&usage, |mut parser| {
        let (mut server, mut store, mut as_json) = (S3Arguments::default(), None, false);
        while let Some(argument) = cli::next(&mut parser)? {
            match argument.as_str() {
                "--json" => as_json = true,
                "--store" => store = Some(cli::value(&mut parser)?),
                option if server.take(option, &mut parser)? => {}
                option => return Err(input(format!("{option}: there is no such option"))),
            }
        }
        let runtime = cli::runtime();
        let mut prefix = String::new();
        if let Some(place) = store {
            let address =
                place.strip_prefix("s3://").ok_or_else(|| input("--store: not s3://BUCKET/STORE"))?;
            let (at, name) = server.at(address)?;
            (server, prefix) = (at, format!("{name}/"));
        }
        let client = server.client(&runtime)?;
        let first_contact = server.first_contact(&client, &runtime)?;
        let found = block_on(first_contact.within(async { Ok(client.probe(&prefix).await?) }))?;
        let requests = client.stats().attempts;
        if as_json {
            print_json(&found, requests);
        } else {
            print_table(&found, requests);
        }
        Ok(())
    })
}

/// The features by name, most important first.
fn features(found: &S3Capabilities) -> [(&'static str, Support); 8] {
    [
        ("read a range", found.ranges),
        ("list in pages", found.listing),
        ("delete many at once", found.multi_delete),
        ("copy", found.copy),
        ("create only", found.create_only_put),
        ("replace a version", found.conditional_put),
        ("delete a version", found.conditional_delete),
        ("check what arrives", found.checks_bodies),
    ]
}

fn print_table(found: &S3Capabilities, requests: u64) {
    for (name, support) in features(found) {
        println!("{name:24} {support}");
    }
    let word = |known: Option<bool>| known.map_or("unknown", |yes| if yes { "YES" } else { "no" });
    println!("{:24} {}", "keeps old versions", word(found.keeps_versions));
    println!("{:24} {}", "locks new objects", word(found.locks_objects));
    println!("{:24} {}", "expires our objects", word(found.expires_objects));
    println!("{:24} {} s", "its clock is ahead by", found.clock_offset_seconds);
    let safe = found.create_only_put == Support::Yes && found.conditional_put == Support::Yes;
    println!();
    println!("Writers of one store {} told apart by conditions.", if safe { "can be" } else { "cannot be" });
    for risk in found.risks() {
        println!("A store is not safe there: {risk}. {} accepts that.", accepting(risk));
    }
    println!("{requests} requests were made; nothing is left of them.");
}

fn print_json(found: &S3Capabilities, requests: u64) {
    let features: serde_json::Map<_, _> = features(found)
        .into_iter()
        .map(|(name, support)| (name.to_owned(), support.to_string().into()))
        .collect();
    let report = serde_json::json!({
        "features": features,
        "keeps_versions": found.keeps_versions,
        "locks_objects": found.locks_objects,
        "expires_objects": found.expires_objects,
        "clock_offset_seconds": found.clock_offset_seconds,
        "quoted_tags": found.quoted_tags,
        "requests": requests,
    });
    println!("{report}");
}
