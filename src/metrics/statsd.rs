//! The datagrams of StatsD: one line per metric, as many lines in a packet as fit.
//!
//! Pure. Called by `reporting`, which sends them. Source: `contract/operations.md` §16.

use crate::config::StatsdTagStyle as TagStyle;
use crate::metrics::families::MetricKind;
use crate::metrics::rotation::Reading;

/// The parts that all lines have in common.
#[derive(Debug)]
pub struct LineFormat {
    prefix: String,
    /// Tags that stand between the name and the value.
    name_tags: String,
    /// Tags that stand behind the type.
    line_tags: String,
    packet_bytes_max: usize,
}

impl LineFormat {
    /// `tags` are the constant labels of all metrics.
    pub fn new(
        prefix: &str,
        tags: &[(String, String)],
        style: TagStyle,
        packet_bytes_max: usize,
    ) -> Self {
        let pairs = |separator: char| {
            tags.iter()
                .map(move |(name, value)| format!("{}{separator}{}", clean(name), clean(value)))
        };
        let after_each =
            |mark: char| pairs('=').fold(String::new(), |text, pair| format!("{text}{mark}{pair}"));
        let (name_tags, line_tags) = match style {
            _ if tags.is_empty() => Default::default(),
            TagStyle::Datadog => {
                let list: Vec<String> = pairs(':').collect();
                (String::new(), format!("|#{}", list.join(",")))
            }
            TagStyle::Influxdb => (after_each(','), String::new()),
            TagStyle::Graphite => (after_each(';'), String::new()),
        };
        Self {
            prefix: prefix.to_owned(),
            name_tags,
            line_tags,
            packet_bytes_max,
        }
    }

    /// The packets of one interval: the reference's metrics, without counters that did not grow. A line longer than the
    /// largest packet becomes a packet of its own.
    pub fn packets(&self, readings: &[Reading]) -> Vec<String> {
        let mut packets: Vec<String> = Vec::new();
        for line in readings.iter().filter_map(|reading| self.line(reading)) {
            match packets.last_mut() {
                Some(packet) if packet.len() + 1 + line.len() <= self.packet_bytes_max => {
                    packet.push('\n');
                    packet.push_str(&line);
                }
                _ => packets.push(line),
            }
        }
        packets
    }

    fn line(&self, reading: &Reading) -> Option<String> {
        let (value, kind) = match reading.kind {
            MetricKind::Counter if reading.value == 0 => return None,
            MetricKind::Counter => (reading.value, 'c'),
            // With a sign StatsD would take the number for a change of the gauge.
            MetricKind::Gauge => (reading.value.max(0), 'g'),
        };
        reading.is_reference.then(|| {
            format!(
                "{}{}{}:{value}|{kind}{}",
                self.prefix, reading.name, self.name_tags, self.line_tags
            )
        })
    }
}

/// Replaces the characters that end a tag or a line in one of the styles. A colon is allowed in values in all of them.
fn clean(text: &str) -> String {
    text.replace(
        |c: char| matches!(c, ',' | ';' | '=' | '|' | '#') || c.is_whitespace() || c.is_control(),
        "_",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn reading(name: &'static str, kind: MetricKind, value: i64) -> Reading {
        Reading {
            name: Cow::Borrowed(name),
            kind,
            value,
            is_reference: true,
        }
    }

    fn tags(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn lines_are_those_of_the_reference() {
        let readings = [
            reading("client_msg_total", MetricKind::Counter, 3),
            reading("clients_num", MetricKind::Gauge, 0),
        ];
        let check = |pairs: &[(&str, &str)], style: TagStyle, expected: &str| {
            let format = LineFormat::new("anycable_go.", &tags(pairs), style, 1400);
            assert_eq!(format.packets(&readings), [expected]);
        };
        let pairs = [("env", "dev"), ("rev", "1.1")];
        for style in [TagStyle::Datadog, TagStyle::Influxdb, TagStyle::Graphite] {
            check(
                &[],
                style,
                "anycable_go.client_msg_total:3|c\nanycable_go.clients_num:0|g",
            );
        }
        check(
            &pairs,
            TagStyle::Datadog,
            "anycable_go.client_msg_total:3|c|#env:dev,rev:1.1\nanycable_go.clients_num:0|g|#env:dev,rev:1.1",
        );
        check(
            &pairs,
            TagStyle::Influxdb,
            "anycable_go.client_msg_total,env=dev,rev=1.1:3|c\nanycable_go.clients_num,env=dev,rev=1.1:0|g",
        );
        check(
            &pairs,
            TagStyle::Graphite,
            "anycable_go.client_msg_total;env=dev;rev=1.1:3|c\nanycable_go.clients_num;env=dev;rev=1.1:0|g",
        );
        check(
            &[("a=b", "x|y,z:1")],
            TagStyle::Datadog,
            "anycable_go.client_msg_total:3|c|#a_b:x_y_z:1\nanycable_go.clients_num:0|g|#a_b:x_y_z:1",
        );
    }

    #[test]
    fn counters_that_gained_nothing_and_own_metrics_are_left_out() {
        let own = Reading {
            is_reference: false,
            ..reading("ringcable_writes_total", MetricKind::Counter, 7)
        };
        let readings = [reading("client_msg_total", MetricKind::Counter, 0), own];
        let format = LineFormat::new("", &[], TagStyle::Datadog, 1400);
        assert!(format.packets(&readings).is_empty());
    }

    #[test]
    fn a_gauge_is_never_a_change() {
        let format = LineFormat::new("", &[], TagStyle::Datadog, 1400);
        assert_eq!(
            format.packets(&[reading("g", MetricKind::Gauge, -1)]),
            ["g:0|g"]
        );
    }

    #[test]
    fn packets_hold_whole_lines_up_to_the_limit() {
        let readings: Vec<Reading> = ["a", "b", "c"]
            .map(|name| reading(name, MetricKind::Gauge, 1))
            .into();
        let check = |max: usize, expected: &[&str]| {
            let format = LineFormat::new("", &[], TagStyle::Datadog, max);
            assert_eq!(format.packets(&readings), expected, "{max}");
        };
        check(17, &["a:1|g\nb:1|g\nc:1|g"]);
        check(16, &["a:1|g\nb:1|g", "c:1|g"]);
        check(11, &["a:1|g\nb:1|g", "c:1|g"]);
        check(10, &["a:1|g", "b:1|g", "c:1|g"]);
        check(1, &["a:1|g", "b:1|g", "c:1|g"]);
    }
}
