//! A subscriber and a recorder that keep everything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata as MetricMetadata, Recorder, SharedString,
    Unit,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Fields by name.
pub(crate) type Fields = BTreeMap<String, String>;

/// A span or an event.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) fields: Fields,
    pub(crate) level: Level,
    pub(crate) name: String,
}

/// Keeps the spans and events of this crate up to a level.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) events: Arc<Mutex<Vec<Entry>>>,
    most: Level,
    pub(crate) spans: Arc<Mutex<Vec<Entry>>>,
}

struct Visitor<'a>(&'a mut Fields);

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl Collector {
    pub(crate) fn new(most: Level) -> Self {
        Self { events: Arc::default(), most, spans: Arc::default() }
    }

    pub(crate) fn events(&self) -> Vec<Entry> {
        self.events.lock().unwrap().clone()
    }

    /// The spans of this name.
    pub(crate) fn spans(&self, name: &str) -> Vec<Fields> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|span| span.name == name).map(|span| span.fields.clone()).collect()
    }

    /// Everything in one text.
    pub(crate) fn text(&self) -> String {
        format!("{:#?}\n{:#?}", self.events.lock().unwrap(), self.spans.lock().unwrap())
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("larder") && *metadata.level() <= self.most
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let metadata = span.metadata();
        let mut entry =
            Entry { fields: Fields::new(), level: *metadata.level(), name: metadata.name().to_owned() };
        span.record(&mut Visitor(&mut entry.fields));
        let mut spans = self.spans.lock().unwrap();
        spans.push(entry);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let at = usize::try_from(span.into_u64()).unwrap() - 1;
        values.record(&mut Visitor(&mut self.spans.lock().unwrap()[at].fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::new();
        event.record(&mut Visitor(&mut fields));
        let name = fields.get("message").cloned().unwrap_or_default();
        self.events.lock().unwrap().push(Entry { fields, level: *event.metadata().level(), name });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Keeps all metrics, by their name and labels: `name{label=value}`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    counters: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    gauges: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    samples: Arc<Mutex<BTreeMap<String, Arc<Samples>>>>,
}

/// The number of samples of a histogram.
#[derive(Debug, Default)]
pub(crate) struct Samples(AtomicU64);

impl HistogramFn for Samples {
    fn record(&self, value: f64) {
        assert!(value >= 0.0);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn name_of(key: &Key) -> String {
    let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
    if labels.is_empty() { key.name().to_owned() } else { format!("{}{{{}}}", key.name(), labels.join(",")) }
}

impl Metrics {
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.counters.lock().unwrap().get(name).map_or(0, |counter| counter.load(Ordering::SeqCst))
    }

    /// The sum of the counters whose name begins like this.
    pub(crate) fn sum(&self, prefix: &str) -> u64 {
        let counters = self.counters.lock().unwrap();
        let found = counters.iter().filter(|(name, _)| name.starts_with(prefix));
        found.map(|(_, counter)| counter.load(Ordering::SeqCst)).sum()
    }

    pub(crate) fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.gauges.lock().unwrap()[name].load(Ordering::SeqCst))
    }

    /// The number of samples of the histograms whose name begins like this.
    pub(crate) fn samples(&self, prefix: &str) -> u64 {
        let samples = self.samples.lock().unwrap();
        let found = samples.iter().filter(|(name, _)| name.starts_with(prefix));
        found.map(|(_, samples)| samples.0.load(Ordering::SeqCst)).sum()
    }

    /// The names of all metrics, without labels.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.counters.lock().unwrap().keys().cloned().collect();
        names.extend(self.gauges.lock().unwrap().keys().cloned());
        names.extend(self.samples.lock().unwrap().keys().cloned());
        names.iter().map(|name| name.split('{').next().unwrap().to_owned()).collect()
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &MetricMetadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap();
        Counter::from_arc(Arc::clone(counters.entry(name_of(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &MetricMetadata<'_>) -> Gauge {
        let mut gauges = self.gauges.lock().unwrap();
        Gauge::from_arc(Arc::clone(gauges.entry(name_of(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &MetricMetadata<'_>) -> Histogram {
        let mut samples = self.samples.lock().unwrap();
        Histogram::from_arc(Arc::clone(samples.entry(name_of(key)).or_default()))
    }
}
