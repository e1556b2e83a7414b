//! "Did you mean": the name of an option that a mistyped one is close to.

use super::options::OPTIONS;

/// Typing errors that a flag may be away from a known one.
const FLAG_DISTANCE_MAX: usize = 2;
/// Fewer for variables: other programs have `ANYCABLE_*` variables too, with names not far from ours.
const VARIABLE_DISTANCE_MAX: usize = 1;

/// The flag closest to `name`, if one is close.
pub fn flag_like(name: &str) -> Option<String> {
    let flags = OPTIONS
        .iter()
        .filter(|option| option.has_flag)
        .map(|option| option.name.to_owned());
    // A short word is within two errors of half the table.
    closest(name, flags, FLAG_DISTANCE_MAX.min(name.chars().count() / 3))
}

/// The variable closest to `name`, if one is close.
pub fn variable_like(name: &str) -> Option<String> {
    closest(
        name,
        OPTIONS.iter().flat_map(|option| option.env_names()),
        VARIABLE_DISTANCE_MAX,
    )
}

fn closest(
    name: &str,
    candidates: impl Iterator<Item = String>,
    distance_max: usize,
) -> Option<String> {
    candidates
        .map(|candidate| (distance(name, &candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from `left` to `right`.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let same = left[i - 1] == right[j - 1];
            let replaced = rows[i - 1][j - 1] + usize::from(!same);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_flags_are_found() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(flag_like(name).as_deref(), expected, "{name}")
        };
        check("prot", Some("port"));
        check("max_conn", Some("max-conn"));
        check("rpc_hots", Some("rpc_host"));
        check("health_path", Some("health-path"));
        check("nope", None);
        check("x", None);
        check("", None);
    }

    #[test]
    fn close_variables_are_found_and_strangers_left_alone() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(variable_like(name).as_deref(), expected, "{name}")
        };
        check("ANYCABLE_RPC_HOTS", Some("ANYCABLE_RPC_HOST"));
        check("ANYCABLE_SECRETS", Some("ANYCABLE_SECRET"));
        for name in [
            "ANYCABLE_RPC_PORT",
            "ANYCABLE_ENABLED",
            "ANYCABLE_WEBSOCKET_URL",
            "ANYCABLE_BROADCAST_URL",
        ] {
            check(name, None);
        }
    }
}
