//! Blobs and indexes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larder::format::Digest;
use larder::internal::blob::{Blob, BlobDecoder, BlobEncoder, DEFAULT_ZSTD_LEVEL, PlaintextSize};
use larder::internal::dynamic_index::{DynamicIndexReader, DynamicIndexWriter};
use larder::internal::fixed_index::{FixedIndexReader, FixedIndexWriter};

const CHUNK: usize = 4 << 20;
const ENTRIES: u64 = 1_000_000;

fn data(random: bool) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..CHUNK / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if random { state } else { state & 0x0707_0707_0707_0707 | 0x6060_6060_6060_6060 }.to_le_bytes()
    });
    words.collect()
}

fn blobs(c: &mut Criterion) {
    let mut group = c.benchmark_group("format");
    group.throughput(Throughput::Bytes(CHUNK as u64)).sample_size(20);
    for (name, random) in [("compressible", false), ("random", true)] {
        let plaintext = data(random);
        let mut encoder = BlobEncoder::new(DEFAULT_ZSTD_LEVEL).unwrap();
        let mut out = Vec::new();
        group.bench_function(format!("encode_{name}"), |bencher| {
            bencher.iter(|| encoder.encode(black_box(&plaintext), &mut out).unwrap());
        });
        let blob = Blob::parse(out.into()).unwrap();
        let (mut decoder, mut out) = (BlobDecoder::new(), Vec::new());
        group.bench_function(format!("decode_{name}"), |bencher| {
            bencher
                .iter(|| decoder.decode(black_box(&blob), &mut out, PlaintextSize::Exactly(CHUNK)).unwrap());
        });
    }
    group.finish();
}

fn indexes(c: &mut Criterion) {
    let mut group = c.benchmark_group("format");
    group.sample_size(10);
    let digest = |number: u64| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        Digest::from(bytes)
    };
    let build_dynamic = || {
        let mut index = DynamicIndexWriter::new();
        (0..ENTRIES).for_each(|number| index.push(CHUNK as u64 - number % 1000, digest(number)).unwrap());
        index.finish([0; 16], 0).unwrap().bytes
    };
    let build_fixed = || {
        let mut index = FixedIndexWriter::new(ENTRIES * CHUNK as u64, CHUNK as u64).unwrap();
        (0..ENTRIES)
            .for_each(|number| index.set(number * CHUNK as u64, CHUNK as u64, digest(number)).unwrap());
        index.finish([0; 16], 0).unwrap().bytes
    };
    group.bench_function("build_dynamic_1m", |bencher| bencher.iter(build_dynamic));
    group.bench_function("build_fixed_1m", |bencher| bencher.iter(build_fixed));
    let (dynamic, fixed) = (build_dynamic(), build_fixed());
    let offsets: Vec<u64> =
        (0..1000).map(|number| number * 0x9e37_79b9 * 977 % (ENTRIES * (CHUNK as u64 - 1000))).collect();
    group.bench_function("open_dynamic_1m_and_find_1000", |bencher| {
        bencher.iter(|| {
            let index = DynamicIndexReader::parse(dynamic.clone()).unwrap();
            offsets.iter().map(|offset| index.chunk_at(*offset).unwrap()).sum::<usize>()
        });
    });
    group.bench_function("open_fixed_1m_and_find_1000", |bencher| {
        bencher.iter(|| {
            let index = FixedIndexReader::parse(fixed.clone()).unwrap();
            offsets.iter().map(|offset| index.chunk_at(*offset).unwrap()).sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, blobs, indexes);
criterion_main!(benches);
