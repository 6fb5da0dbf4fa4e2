//! Near-matches for misspelt names. One place, so that every message suggests alike.

/// The candidate most like `word`, if one is close enough to be meant.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = word.chars().count().div_ceil(3).min(3);
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// ` Did you mean x?`, or nothing; `show` decorates the name (`@x`, `` `x` ``).
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    show: impl Fn(&str) -> String,
) -> String {
    closest(word, candidates).map_or_else(String::new, |c| format!(" Did you mean {}?", show(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_match_is_found_and_a_far_one_is_not() {
        let steps = ["start", "train", "end"];
        assert_eq!(closest("trian", steps), Some("train"));
        assert_eq!(closest("Start", steps), Some("start"));
        assert_eq!(closest("evaluate", steps), None);
        assert_eq!(closest("x", ["ab"]), None);
    }

    #[test]
    fn the_sentence_is_empty_without_a_match() {
        assert_eq!(did_you_mean("retyr", ["retry"], |n| format!("@{n}")), " Did you mean @retry?");
        assert_eq!(did_you_mean("zzz", ["retry"], str::to_owned), "");
    }
}
