//! How fast streams are cut, beside the `fastcdc` crate with the same limits.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larder::chunker::{Chunker as _, RollingChunker};
use larder::internal::chunker::is_zero;

const BYTES: usize = 64 << 20;

fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn chunkers(c: &mut Criterion) {
    let data = noise();
    let mut group = c.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    group.bench_function("rolling", |bencher| {
        bencher.iter(|| {
            let (mut chunker, mut rest, mut chunks) = (RollingChunker::default(), &data[..], 0);
            while let Some(cut) = chunker.scan(rest) {
                rest = &rest[cut..];
                chunks += 1;
            }
            black_box(chunks)
        });
    });
    group.bench_function("fastcdc", |bencher| {
        bencher.iter(|| black_box(fastcdc::v2020::FastCDC::new(&data, 1 << 20, 4 << 20, 16 << 20).count()));
    });
    let zeros = vec![0; BYTES];
    group.bench_function("is_zero", |bencher| bencher.iter(|| is_zero(black_box(&zeros))));
    group.finish();
}

criterion_group!(benches, chunkers);
criterion_main!(benches);
