//! The times in logs. They are UTC as RFC 3339 has it, `2026-01-31T12:00:00.123456Z`, and nothing else.

/// A time of a log line, in milliseconds since the Unix epoch. `None` for anything else.
#[must_use]
pub fn parse_utc_ms(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, separator: char| -> Option<Vec<i64>> {
        text.split(separator)
            .map(|part| part.parse().ok())
            .collect()
    };
    let [year, month, day] = numbers(date, '-')?[..] else {
        return None;
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(clock, ':')?[..] else {
        return None;
    };
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // Days since the epoch in the Gregorian calendar, whose years are counted from March here, so that the leap day is
    // the last: Howard Hinnant's `days_from_civil`.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    u64::try_from(seconds * 1000 + ms).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_logs_are_read() {
        assert_eq!(parse_utc_ms("1970-01-01T00:00:00.001Z"), Some(1));
        assert_eq!(
            parse_utc_ms("2024-02-29T23:59:59.999999Z"),
            Some(1_709_251_199_999)
        );
        assert_eq!(parse_utc_ms("2000-03-01T00:00:00Z"), Some(951_868_800_000));
        for text in ["", "2024-02-29", "2024-02T00:00:00Z", "yesterdayT00:00:00Z"] {
            assert_eq!(parse_utc_ms(text), None, "{text}");
        }
    }
}
