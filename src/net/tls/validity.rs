//! When a certificate is valid: only as much of X.509 as is needed to read two dates. Pure; called by
//! [`super::certificate`].

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tz::UtcDateTime;

/// The first and the last second in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: Date,
    pub not_after: Date,
}

/// Seconds of Unix time. Shown as `2026-11-26T06:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(pub i64);

/// What a certificate's dates say about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Valid,
    NotYetValid,
    EndsSoon,
    Expired,
}

impl Validity {
    /// Reads the dates of a DER certificate; `None` when they are not where they should be.
    ///
    /// Source: RFC 5280 §4.1.
    pub fn read(certificate: &[u8]) -> Option<Self> {
        let mut outside = Der(certificate);
        let mut certificate = Der(outside.take(SEQUENCE)?);
        let mut signed = Der(certificate.take(SEQUENCE)?);
        if signed.0.first() == Some(&VERSION) {
            signed.take(VERSION)?;
        }
        for skipped in [SERIAL, SIGNATURE_ALGORITHM, ISSUER] {
            signed.take(skipped)?;
        }
        let mut dates = Der(signed.take(SEQUENCE)?);
        Some(Self {
            not_before: dates.take_date()?,
            not_after: dates.take_date()?,
        })
    }

    /// `notice`: from this time before its end a certificate counts as [`Standing::EndsSoon`].
    pub fn standing(&self, now: SystemTime, notice: Duration) -> Standing {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        if now > self.not_after.0 {
            Standing::Expired
        } else if now < self.not_before.0 {
            Standing::NotYetValid
        } else if now.saturating_add(notice.as_secs() as i64) > self.not_after.0 {
            Standing::EndsSoon
        } else {
            Standing::Valid
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(date) = UtcDateTime::from_timespec(self.0, 0) else {
            return write!(formatter, "{} s of Unix time", self.0);
        };
        write!(
            formatter,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            date.year(),
            date.month(),
            date.month_day(),
            date.hour(),
            date.minute(),
            date.second()
        )
    }
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const SERIAL: u8 = 0x02;
const SIGNATURE_ALGORITHM: u8 = SEQUENCE;
const ISSUER: u8 = SEQUENCE;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// A sequence of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next value, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, contents) = self.next()?;
        (found == tag).then_some(contents)
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            // The number of length bytes that follow. More than four would mean a certificate above 4 GB, which is refused.
            0x81..=0x84 => {
                let (bytes, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = behind;
                bytes
                    .iter()
                    .fold(0, |length, &byte| length << 8 | usize::from(byte))
            }
            _ => return None,
        };
        let (contents, behind) = rest.split_at_checked(length)?;
        self.0 = behind;
        Some((tag, contents))
    }

    /// Source: RFC 5280 §4.1.2.5: UTC, with seconds and without fractions.
    fn take_date(&mut self) -> Option<Date> {
        let (tag, text) = self.next()?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = number(text, 2)?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => number(text, 4)?,
            _ => return None,
        };
        let (month, rest) = number(rest, 2)?;
        let (day, rest) = number(rest, 2)?;
        let (hour, rest) = number(rest, 2)?;
        let (minute, rest) = number(rest, 2)?;
        let (second, rest) = number(rest, 2)?;
        if rest != b"Z" {
            return None;
        }
        let [month, day, hour, minute, second] =
            [month, day, hour, minute, second].map(|number| number as u8);
        let date = UtcDateTime::new(i32::from(year), month, day, hour, minute, second, 0).ok()?;
        Some(Date(date.unix_time()))
    }
}

/// A number with this many decimal digits, and the rest of the text.
fn number(text: &[u8], digits: usize) -> Option<(u16, &[u8])> {
    let (digits, rest) = text.split_at_checked(digits)?;
    let mut number = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u16::from(digit - b'0');
    }
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().expect("a key");
        params
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .to_vec()
    }

    #[test]
    fn dates_are_read_from_real_certificates() {
        fn check(from: (i32, u8, u8), until: (i32, u8, u8), expected: [&str; 2]) {
            let validity = Validity::read(&certificate(from, until)).expect("dates");
            let shown = [validity.not_before, validity.not_after].map(|date| date.to_string());
            assert_eq!(shown, expected);
        }
        check(
            (2026, 2, 28),
            (2049, 12, 31),
            ["2026-02-28T00:00:00Z", "2049-12-31T00:00:00Z"],
        );
        // From 2050 on the year has four digits.
        check(
            (1975, 1, 1),
            (4096, 1, 1),
            ["1975-01-01T00:00:00Z", "4096-01-01T00:00:00Z"],
        );
    }

    #[test]
    fn only_utc_with_seconds_is_a_date() {
        fn check(tag: u8, text: &[u8], expected: Option<i64>) {
            let der = [&[tag, text.len() as u8], text].concat();
            assert_eq!(
                Der(&der).take_date().map(|date| date.0),
                expected,
                "{text:?}"
            );
        }
        check(UTC_TIME, b"700101000000Z", Some(0));
        check(UTC_TIME, b"261126064700Z", Some(1_795_675_620));
        check(GENERALIZED_TIME, b"20261126064700Z", Some(1_795_675_620));
        check(GENERALIZED_TIME, b"99991231235959Z", Some(253_402_300_799));
        for text in [
            &b"2611260647Z"[..],
            b"261126064700+0000",
            b"261126064700",
            b"261326064700Z",
            b"260230064700Z",
            b"26112606470xZ",
            b"",
        ] {
            check(UTC_TIME, text, None);
        }
        check(0x13, b"261126064700Z", None);
    }

    #[test]
    fn standing_is_told_by_the_second() {
        let validity = Validity {
            not_before: Date(1_000),
            not_after: Date(2_000),
        };
        let check = |secs, expected| {
            let now = UNIX_EPOCH + Duration::from_secs(secs);
            let standing = validity.standing(now, Duration::from_secs(100));
            assert_eq!(standing, expected, "{secs}");
        };
        check(999, Standing::NotYetValid);
        check(1_000, Standing::Valid);
        check(1_900, Standing::Valid);
        check(1_901, Standing::EndsSoon);
        check(2_000, Standing::EndsSoon);
        check(2_001, Standing::Expired);
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_never_a_panic(at in 0_usize..1000, value in any::<u8>(), length in 0_usize..1000) {
            let mut der = certificate((2026, 1, 1), (2027, 1, 1));
            let at = at % der.len();
            der[at] = value;
            der.truncate(length);
            let _may_be_none = Validity::read(&der);
        }
    }
}
