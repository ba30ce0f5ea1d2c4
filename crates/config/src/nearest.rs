//! The nearest known word to a misspelt one. Shared with the command line and the REST API, so that all suggest alike.

/// The candidate that `word` most likely means; `None` when it resembles none.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= tolerance(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many edits still look like a slip of the fingers: a third of the word, at least one.
fn tolerance(candidate: &str) -> usize {
    (candidate.chars().count() / 3).max(1)
}

/// The known `section.key` that an unknown one most likely means: a slip within the section, or the right key in
/// another section.
pub(crate) fn nearest_key<'a>(unknown: &str, known: &'a [String]) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let in_another_section = || {
        let mut same = known.iter().filter(|key| last(key) == last(unknown));
        same.next().filter(|_| same.next().is_none())
    };
    if let Some(moved) = in_another_section() {
        return Some(moved);
    }
    let (section, _) = unknown.split_once('.').unwrap_or(("", unknown));
    let siblings = known
        .iter()
        .filter(|key| key.split('.').next() == Some(section));
    let sibling_names: Vec<String> = siblings.clone().map(|key| last(key)).collect();
    if let Some(name) = nearest(&last(unknown), sibling_names.iter().map(String::as_str)) {
        return siblings
            .into_iter()
            .map(String::as_str)
            .find(|key| last(key) == name);
    }
    nearest(unknown, known.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let words = ["slots", "data_dir", "jobmanagers"];
        assert_eq!(nearest("slot", words), Some("slots"));
        assert_eq!(nearest("Slost", words), Some("slots"));
        assert_eq!(nearest("job_managers", words), Some("jobmanagers"));
        assert_eq!(nearest("colour", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn a_key_is_found_within_its_section_and_in_others() {
        let known = crate::keys();
        let check = |unknown, expected| assert_eq!(nearest_key(unknown, &known), expected);
        check("taskmanager.slot", Some("taskmanager.slots"));
        check("taskmanger.slots", Some("taskmanager.slots"));
        check("cluster.interval_ms", Some("checkpoints.interval_ms"));
        check("taskmanager.datadir", Some("taskmanager.data_dir"));
        check("taskmanagr.slot", Some("taskmanager.slots"));
        check("colour.of_the_sky", None);
    }
}
