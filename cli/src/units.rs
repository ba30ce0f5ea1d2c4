//! Numbers, sizes, durations and times as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2`, `slot` as `2 slots`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        count(number),
        if number == 1 { "" } else { "s" }
    )
}

/// `1536` as `1.5 KiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{size:.1} {unit}")
    }
}

/// `12345` microseconds as `12.3 ms`.
pub(crate) fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => duration(Duration::from_micros(us)),
    }
}

/// `83.4 s` as `1 m 23 s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// How long ago a time was, in milliseconds since the Unix epoch.
pub(crate) fn ago(time_ms: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    duration(now.saturating_sub(Duration::from_millis(time_ms)))
}

/// Milliseconds since the Unix epoch as `2023-11-14 22:13:20.000Z`.
pub(crate) fn time(time_ms: u64) -> String {
    let (days, within_day) = (time_ms / 86_400_000, time_ms % 86_400_000);
    let (year, month, day) = date(days);
    let (hour, minute) = (within_day / 3_600_000, within_day / 60_000 % 60);
    let (second, millisecond) = (within_day / 1_000 % 60, within_day % 1_000);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

/// Days since the Unix epoch as year, month and day (Howard Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`, for days from the epoch on).
fn date(days: u64) -> (u64, u64, u64) {
    let from_march = days + 719_468;
    let era = from_march / 146_097;
    let day_of_era = from_march % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn one_is_singular() {
        let slots = [0, 1, 2_000].map(|number| counted(number, "slot"));
        assert_eq!(slots, ["0 slots", "1 slot", "2,000 slots"]);
    }

    #[test]
    fn sizes_and_durations_have_a_unit_that_fits() {
        assert_eq!(
            [0, 1023, 1536, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
        assert_eq!(
            [7, 12_345, 1_500_000].map(microseconds),
            ["7 µs", "12.3 ms", "1.5 s"]
        );
        let of = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(
            [5, 83, 3_700, 90_000].map(of),
            ["5.0 s", "1 m 23 s", "1 h 1 m", "1 d 1 h"]
        );
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(time(1_700_000_000_123), "2023-11-14 22:13:20.123Z");
        assert_eq!(time(4_102_444_799_999), "2099-12-31 23:59:59.999Z");
    }
}
