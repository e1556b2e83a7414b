//! "Did you mean": finds the option whose name is close to a mistyped one.

use super::options::OPTIONS;

/// Most typing errors between a mistyped flag and a known one.
const FLAG_DISTANCE_MAX: usize = 2;
/// The same for variables. Short names allow fewer, because the app has `ANYCABLE_*` variables too, and their names are
/// close to ours.
const VARIABLE_DISTANCE_MAX: usize = 2;
const VARIABLE_CHARS_PER_ERROR: usize = 5;
const VARIABLE_PREFIX: &str = "ANYCABLE_";

/// The flag closest to `name`, if one is close.
pub fn flag_like(name: &str) -> Option<String> {
    let flags = OPTIONS
        .iter()
        .filter(|option| option.has_flag)
        .map(|option| option.name.to_owned());
    // Within two errors a short word would match half the table, so it may have fewer.
    closest(name, flags, FLAG_DISTANCE_MAX.min(name.chars().count() / 3))
}

/// The variable closest to `name`, if one is close.
pub fn variable_like(name: &str) -> Option<String> {
    let chars = name.chars().count().saturating_sub(VARIABLE_PREFIX.len());
    closest(
        name,
        OPTIONS
            .iter()
            .flat_map(|option| option.env_names())
            .filter(|variable| variable.starts_with(VARIABLE_PREFIX)),
        (chars / VARIABLE_CHARS_PER_ERROR).clamp(1, VARIABLE_DISTANCE_MAX),
    )
}

/// The file key that may be meant by `key`: one with a close name, the key of the flag of this name, or the only key that
/// begins with `key`.
pub fn file_key_like(key: &str) -> Option<String> {
    let keys = || {
        OPTIONS
            .iter()
            .map(|option| option.file_key)
            .filter(|key| !key.is_empty())
    };
    let of_flag = OPTIONS
        .iter()
        .find(|option| option.has_flag && option.name == key && !option.file_key.is_empty())
        .map(|option| option.file_key.to_owned());
    of_flag
        .or_else(|| closest(key, keys().map(str::to_owned), FLAG_DISTANCE_MAX))
        .or_else(|| {
            let start = format!("{key}_");
            let mut longer = keys().filter(|key| key.starts_with(&start));
            longer
                .next()
                .filter(|_| longer.next().is_none())
                .map(str::to_owned)
        })
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

/// The number of insertions, deletions, substitutions and swaps of neighbours between `left` and `right`.
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
        check("ANYCABLE_PROT", Some("ANYCABLE_PORT"));
        check("ANYCABLE_RPC_CONCURENY", Some("ANYCABLE_RPC_CONCURRENCY"));
        check("ANYCABEL_SECRET", Some("ANYCABLE_SECRET"));
        check("ANY_CABLE_HOST", Some("ANYCABLE_HOST"));
        for name in ["ANYCABLE_RPC_PORT", "ANYCABLE_ENABLED", "PORTS", ""] {
            check(name, None);
        }
    }

    /// Variables that the app's side of AnyCable reads and the server does not. Both programs often get the same variables.
    #[test]
    fn variables_of_the_app_are_not_taken_for_mistakes() {
        for name in [
            "ACCESS_LOGS_DISABLED",
            "BATCH_BROADCASTS",
            "BROADCAST_URL",
            "DISABLE_RPC_POOL_SIZE_WARNING",
            "EMBEDDED",
            "FLY_WS_APP_NAME",
            "HTTP_BROADCAST_URL",
            "HTTP_HEALTH_PATH",
            "HTTP_HEALTH_PORT",
            "HTTP_RPC",
            "HTTP_RPC_MOUNT_PATH",
            "JWT_TTL",
            "LOG_FILE",
            "LOG_GRPC",
            "NATS_OPTIONS",
            "PERSISTENT_SESSION_ENABLED",
            "POSTGRES_BROADCASTS_TABLE",
            "POSTGRES_CONTRACT_TABLE",
            "POSTGRES_URL",
            "POSTGRES_VALIDATE_CONTRACT",
            "RPC_MAX_CONNECTION_AGE",
            "RPC_MAX_WAITING_REQUESTS",
            "RPC_POLL_PERIOD",
            "RPC_POOL_KEEP_ALIVE",
            "RPC_POOL_SIZE",
            "RPC_SERVER_ARGS",
            "RPC_TLS_CERT",
            "RPC_TLS_KEY",
            "SID_HEADER_ENABLED",
            "SOCKET_ID_HEADER",
            "USE_WARDEN_MANAGER",
            "VERSION_CHECK_ENABLED",
            "WEBSOCKET_URL",
        ] {
            assert_eq!(variable_like(&format!("ANYCABLE_{name}")), None, "{name}");
        }
    }

    #[test]
    fn close_file_keys_are_found() {
        let check = |key: &str, expected: Option<&str>| {
            assert_eq!(file_key_like(key).as_deref(), expected, "{key}")
        };
        check("server.prot", Some("server.port"));
        check("port", Some("server.port"));
        check("rpc_host", Some("rpc.host"));
        check("metrics.http", Some("metrics.http_path"));
        check("norpc", None);
        check("nowhere", None);
        check("", None);
    }
}
