//! The ratios that say whether more shards cost more, from the medians of all runs.

use crate::report::{Report, distinct};

use super::{calls, case, leaving, publishing, resting, waiting, whispers};

/// Figures that should not grow with the number of shards: part, figure.
const FLAT: [(&str, &str); 5] = [
    (publishing::ROOMS, publishing::PER_PUBLICATION),
    (whispers::NAME, whispers::PER_WHISPER),
    (calls::NAME, calls::PER_PERFORM),
    (leaving::NAME, leaving::PER_SESSION),
    (waiting::NAME, waiting::PER_CHANGE),
];

/// From here on a room of three has hardly two sessions on one shard, so that nothing grows any more.
const SEVERAL: usize = 8;

/// Adds a case for each number of shards, `growth: N shards`.
pub fn compare(counts: &[usize], report: &mut Report) {
    let servers = distinct(report.rows().iter().map(|row| &row.server));
    let servers: Vec<String> = servers.into_iter().map(str::to_owned).collect();
    for shards in counts {
        for server in &servers {
            compare_one(server, *shards, report);
        }
    }
}

fn compare_one(server: &str, shards: usize, report: &mut Report) {
    let median = |server: &str, part: &str, shards: usize, metric: &str| {
        let row = report.row(server, &case(part, shards), metric)?;
        Some(row.median())
    };
    let ratio = |(part, metric): (&str, &str), base: usize| {
        let now = median(server, part, shards, metric)?;
        Some(now / median(server, part, base, metric)?)
    };
    let mut figures: Vec<(String, &str, Option<f64>)> = Vec::new();
    for figure in FLAT {
        let text = |base| format!("{}: {}, of that with {base}", figure.0, figure.1);
        figures.push((text("1 shard"), "ratio", ratio(figure, 1)));
        if shards > SEVERAL {
            let several = text(&format!("{SEVERAL} shards"));
            figures.push((several, "ratio", ratio(figure, SEVERAL)));
        }
    }
    let memory = |shards| median(server, resting::NAME, shards, resting::MEMORY);
    let each = || Some((memory(shards)? - memory(1)?) / (shards - 1) as f64);
    let each = if shards > 1 { each() } else { None };
    figures.push(("private memory per further shard".to_owned(), "kB", each));
    let before = server.replacen("ringcable", "before", 1);
    if before != server {
        for (part, metric) in [
            (publishing::ROOMS, publishing::PER_PUBLICATION),
            (publishing::ONE_STREAM, publishing::PER_SECOND),
        ] {
            let value = |server| median(server, part, shards, metric);
            let compared = || Some(value(server)? / value(&before)?);
            let text = format!("{part}: {metric}, of that before");
            figures.push((text, "ratio", compared()));
        }
    }
    let case = case("growth", shards);
    for (metric, unit, value) in figures {
        if let Some(value) = value {
            report.sample(server, &case, &metric, unit, value);
        }
    }
}
