//! How fast streams are cut, beside the `fastcdc` crate with the same limits, and the hash of PBS clients as a plain loop.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larder::chunker::{BuzhashChunker, Chunker, RollingChunker};
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

fn count(mut chunker: impl Chunker, mut rest: &[u8]) -> usize {
    let mut chunks = 0;
    while let Some(cut) = chunker.scan(rest) {
        rest = &rest[cut..];
        chunks += 1;
    }
    chunks
}

/// The loop of the definition: two look-ups for each byte behind the minimum. The numbers are others, which costs the same.
fn plain_buzhash(mut rest: &[u8]) -> usize {
    let mut numbers = [0_u32; 256];
    let mut state = 1_u32;
    for number in &mut numbers {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *number = state;
    }
    let (min, max, mask) = (1 << 20, 16 << 20, (8 << 20) - 1);
    let mut chunks = 0;
    while rest.len() > min {
        let first = rest[min - 64..min].iter();
        let mut hash = first.fold(0_u32, |hash, byte| hash.rotate_left(1) ^ numbers[usize::from(*byte)]);
        let behind = rest[min - 64..].iter().zip(&rest[min..rest.len().min(max)]);
        let cut = behind.into_iter().position(|(old, new)| {
            hash = hash.rotate_left(1) ^ numbers[usize::from(*old)] ^ numbers[usize::from(*new)];
            hash & mask >= mask - 2
        });
        rest = &rest[cut.map_or(rest.len().min(max), |cut| min + cut + 1)..];
        chunks += 1;
    }
    chunks
}

fn chunkers(c: &mut Criterion) {
    let data = noise();
    let mut group = c.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
    group.bench_function("rolling", |bencher| {
        bencher.iter(|| black_box(count(RollingChunker::default(), &data)));
    });
    group.bench_function("buzhash", |bencher| {
        bencher.iter(|| black_box(count(BuzhashChunker::default(), &data)));
    });
    group.bench_function("buzhash, byte by byte", |bencher| {
        bencher.iter(|| black_box(plain_buzhash(&data)));
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
