//! Local time from Unix time, for records and error lines.
//!
//! The zone is the one that `localtime(3)` would use (`TZ`, else `/etc/localtime`), read once; UTC when there is none.

use std::sync::LazyLock;

use tz::TimeZone;

/// A moment on the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    /// Seconds east of UTC.
    pub offset_secs: i32,
}

static ZONE: LazyLock<TimeZone> = LazyLock::new(|| {
    let from_env = std::env::var("TZ").ok().filter(|name| !name.is_empty());
    from_env
        .map_or_else(TimeZone::local, |name| TimeZone::from_posix_tz(&name))
        .unwrap_or_else(|_| TimeZone::utc())
});

/// Reads the zone now, so that no later caller waits for its file.
pub fn read_zone() {
    LazyLock::force(&ZONE);
}

/// The local clock at `unix_secs` seconds after 1970.
pub fn local_time(unix_secs: i64) -> LocalTime {
    let offset_secs = ZONE
        .find_local_time_type(unix_secs)
        .map_or(0, |found| found.ut_offset());
    clock(unix_secs, offset_secs)
}

const DAY_SECS: i64 = 86_400;

fn clock(unix_secs: i64, offset_secs: i32) -> LocalTime {
    let local_secs = unix_secs.saturating_add(i64::from(offset_secs));
    let (year, month, day) = date(local_secs.div_euclid(DAY_SECS));
    let second_of_day = u32::try_from(local_secs.rem_euclid(DAY_SECS)).expect("less than a day");
    LocalTime {
        year,
        month,
        day,
        hour: second_of_day / 3600,
        minute: second_of_day / 60 % 60,
        second: second_of_day % 60,
        offset_secs,
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Counts in eras of 400 years that begin on a March 1st, so that the leap day is the last day of a year.
fn date(unix_days: i64) -> (i64, u32, u32) {
    const ERA_DAYS: i64 = 146_097;
    let days = unix_days + 719_468;
    let day_of_era = days.rem_euclid(ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = days.div_euclid(ERA_DAYS) * 400 + year_of_era + i64::from(month <= 2);
    let small = |number: i64| u32::try_from(number).expect("a month or a day");
    (year, small(month), small(day))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_told_right() {
        let check = |unix_secs: i64, offset_secs: i32, expected: (i64, u32, u32, u32, u32, u32)| {
            let time = clock(unix_secs, offset_secs);
            let found = (
                time.year,
                time.month,
                time.day,
                time.hour,
                time.minute,
                time.second,
            );
            assert_eq!(found, expected, "{unix_secs} {offset_secs}");
        };
        check(0, 0, (1970, 1, 1, 0, 0, 0));
        check(-1, 0, (1969, 12, 31, 23, 59, 59));
        check(951_782_400, 0, (2000, 2, 29, 0, 0, 0));
        check(951_868_800, 0, (2000, 3, 1, 0, 0, 0));
        check(1_000_000_000, 0, (2001, 9, 9, 1, 46, 40));
        check(4_102_444_800, 0, (2100, 1, 1, 0, 0, 0));
        check(4_107_542_400, 0, (2100, 3, 1, 0, 0, 0));
        check(1_795_451_029, 0, (2026, 11, 23, 16, 23, 49));
        check(1_795_451_029, 3600 * 9, (2026, 11, 24, 1, 23, 49));
        check(0, -3600, (1969, 12, 31, 23, 0, 0));
    }

    proptest! {
        #[test]
        fn dates_agree_with_another_calendar(days in -200_000_i64..200_000) {
            let other = tz::UtcDateTime::from_timespec(days * DAY_SECS, 0).expect("in range");
            let expected = (i64::from(other.year()), u32::from(other.month()), u32::from(other.month_day()));
            prop_assert_eq!(date(days), expected);
        }
    }
}
