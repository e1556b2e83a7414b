//! The Prometheus text of all metrics.
//!
//! Owns the text format; the names and the HELP texts are in `families`. Only reads counters and writes a `String`.
//! Called by `endpoints::metrics` for each scrape.
//!
//! The reference's names come first, summed over the shards. ringcable's own follow with the prefix `ringcable_`, one sample
//! per shard, because "why is it slow?" is often "why is *this shard* slow?".

use std::fmt::Display;
use std::fmt::Write as _;

use crate::metrics::families::{
    CLOSED, Family, HistogramFamily, MetricKind, OWN, OWN_HISTOGRAMS, OWN_PREFIX, OWN_PROCESS,
    ProcessFamily, REFERENCE, REFERENCE_PREFIX, REFERENCE_PROCESS, REFERENCE_RPC, Read,
};
use crate::metrics::histogram::{BOUNDS_MICROS, Snapshot};
use crate::metrics::{Metrics, TlsMetrics};

/// The `Content-Type` of the text. The format requires the version; the reference leaves it out.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Appends the whole exposition to `out`. `tags` (`--metrics_tags`) become constant labels of every sample.
///
/// The order of families is fixed, so that two scrapes can be compared with `diff`.
pub fn render(metrics: &Metrics, tags: &[(String, String)], out: &mut String) {
    let mut text = Text {
        tags: constant_labels(tags),
        out,
    };
    render_reference(metrics, &mut text);
    render_own(metrics, &mut text);
}

fn render_reference(metrics: &Metrics, text: &mut Text<'_>) {
    for family in REFERENCE {
        text.sum(metrics, family);
    }
    if metrics.rpc_configured {
        for family in REFERENCE_RPC {
            text.sum(metrics, family);
        }
    }
    for family in REFERENCE_PROCESS {
        text.process(metrics, REFERENCE_PREFIX, family);
    }
}

fn render_own(metrics: &Metrics, text: &mut Text<'_>) {
    let name = format!("{OWN_PREFIX}build_info");
    text.head(&name, "gauge", "Always 1; the labels say what is running");
    let driver = metrics.driver.get().copied().unwrap_or_default();
    text.sample(
        &name,
        &[("version", env!("CARGO_PKG_VERSION")), ("driver", driver)],
        1,
    );
    for family in OWN_PROCESS {
        text.process(metrics, OWN_PREFIX, family);
    }
    if let Some(tls) = &metrics.tls {
        render_tls(tls, text);
    }
    for family in OWN {
        text.per_shard(metrics, family);
    }
    text.cpu(metrics);
    text.closed(metrics);
    for family in OWN_HISTOGRAMS {
        text.histogram(metrics, family);
    }
}

fn render_tls(tls: &TlsMetrics, text: &mut Text<'_>) {
    let expiry = tls.certificate_expiry.value();
    if expiry != TlsMetrics::EXPIRY_UNKNOWN {
        let name = format!("{OWN_PREFIX}tls_certificate_expiry_seconds");
        text.head(
            &name,
            "gauge",
            "Unix time at which the certificate for clients ends",
        );
        text.sample(&name, &[], expiry);
    }
    let name = format!("{OWN_PREFIX}tls_reloads_total");
    text.head(
        &name,
        "counter",
        "SIGHUPs, by whether the files of the certificate could be used",
    );
    for (result, count) in [
        ("ok", &tls.reloads_total),
        ("failed", &tls.failed_reloads_total),
    ] {
        text.sample(&name, &[("result", result)], count.value());
    }
}

/// The text being written and the labels that go on every sample.
struct Text<'a> {
    /// Valid and distinct names, escaped values.
    tags: Vec<(String, String)>,
    out: &'a mut String,
}

impl Text<'_> {
    fn sum(&mut self, metrics: &Metrics, family: &Family) {
        let name = format!("{REFERENCE_PREFIX}{}", family.name);
        let kind = family.read.kind();
        self.head(&name, kind.word(), family.help);
        self.number(&name, kind, family.read.sum(metrics));
    }

    fn process(&mut self, metrics: &Metrics, prefix: &str, family: &ProcessFamily) {
        let name = format!("{prefix}{}", family.name);
        self.head(&name, family.kind.word(), family.help);
        self.number(&name, family.kind, (family.read)(metrics));
    }

    fn number(&mut self, name: &str, kind: MetricKind, value: i64) {
        match kind {
            MetricKind::Counter => self.sample(name, &[], value as u64),
            MetricKind::Gauge => self.sample(name, &[], value),
        }
    }

    fn cpu(&mut self, metrics: &Metrics) {
        let name = format!("{OWN_PREFIX}cpu_seconds_total");
        self.head(&name, "counter", "CPU time of the shard's thread");
        for (id, gauge) in metrics.cpu_millis.iter().enumerate() {
            let millis = gauge.value();
            let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
            self.sample(&name, &[("shard", &id.to_string())], seconds);
        }
    }

    fn per_shard(&mut self, metrics: &Metrics, family: &Family) {
        let name = format!("{OWN_PREFIX}{}", family.name);
        self.head(&name, family.read.kind().word(), family.help);
        for (id, shard) in metrics.shards.iter().enumerate() {
            let labels = [("shard", &*id.to_string())];
            match family.read {
                Read::Counter(read) => self.sample(&name, &labels, read(shard).value()),
                Read::Gauge(read) => self.sample(&name, &labels, read(shard).value()),
            }
        }
    }

    fn closed(&mut self, metrics: &Metrics) {
        let name = format!("{OWN_PREFIX}closed_total");
        self.head(&name, "counter", "Sessions closed, by reason");
        for (id, shard) in metrics.shards.iter().enumerate() {
            let id = id.to_string();
            for (reason, read) in CLOSED {
                self.sample(
                    &name,
                    &[("shard", &id), ("reason", reason)],
                    read(shard).value(),
                );
            }
        }
    }

    fn histogram(&mut self, metrics: &Metrics, family: &HistogramFamily) {
        let name = format!("{OWN_PREFIX}{}", family.name);
        self.head(&name, "histogram", family.help);
        let mut sum = Snapshot::default();
        for shard in &metrics.shards {
            sum.merge(&(family.read)(shard).snapshot());
        }
        let bucket_name = format!("{name}_bucket");
        let bounds = BOUNDS_MICROS
            .iter()
            .map(|&micros| (micros as f64 / 1e6).to_string());
        let mut count = 0u64;
        for (bucket, bound) in sum.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            count = count.wrapping_add(*bucket);
            self.sample(&bucket_name, &[("le", &bound)], count);
        }
        // The count is the last bucket, not its own counter, because the two must agree in every scrape.
        let seconds = format!(
            "{}.{:09}",
            sum.sum_nanos / 1_000_000_000,
            sum.sum_nanos % 1_000_000_000
        );
        self.sample(&format!("{name}_sum"), &[], seconds);
        self.sample(&format!("{name}_count"), &[], count);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        for part in [
            "# HELP ",
            name,
            " ",
            help,
            "\n# TYPE ",
            name,
            " ",
            kind,
            "\n",
        ] {
            self.out.push_str(part);
        }
    }

    fn sample(&mut self, name: &str, own_labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(name);
        self.labels(own_labels);
        writeln!(self.out, " {value}").expect("writing to a String cannot fail");
    }

    /// The sample's own labels first, then the constant ones. The server chooses the values of own labels, so they need no
    /// escaping.
    fn labels(&mut self, own_labels: &[(&str, &str)]) {
        let is_own = |name: &str| own_labels.iter().any(|(own, _)| *own == name);
        let is_tag = |name: &str| self.tags.iter().any(|(tag, _)| tag == name);
        let mut opener = "{";
        let mut push = |prefix: &str, name: &str, value: &str| {
            for part in [opener, prefix, name, "=\"", value, "\""] {
                self.out.push_str(part);
            }
            opener = ",";
        };
        for (name, value) in own_labels {
            push("", name, value);
        }
        for (name, value) in &self.tags {
            if !is_own(name) {
                push("", name, value);
            } else if !is_tag(&format!("{CLASH_PREFIX}{name}")) {
                push(CLASH_PREFIX, name, value);
            }
        }
        if opener == "," {
            self.out.push('}');
        }
    }
}

/// Two labels of the same name would make the whole scrape invalid. Prometheus itself renames conflicting labels with this
/// prefix.
const CLASH_PREFIX: &str = "exported_";

/// Turns tags into labels: names are made valid, values are escaped, and of two equal names the first stays.
fn constant_labels(tags: &[(String, String)]) -> Vec<(String, String)> {
    let mut labels: Vec<(String, String)> = Vec::with_capacity(tags.len());
    for (name, value) in tags {
        let name = label_name(name);
        if labels.iter().all(|(other, _)| *other != name) {
            labels.push((name, escape(value)));
        }
    }
    labels
}

/// Replaces the characters that `[a-zA-Z_][a-zA-Z0-9_]*` does not allow by `_`.
fn label_name(tag: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut name: String = tag.chars().map(valid).collect();
    if !name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()) {
        name.insert(0, '_');
    }
    name
}

/// Escapes a label value. The format knows only these three escapes: backslash, double quote and line feed.
fn escape(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests;
