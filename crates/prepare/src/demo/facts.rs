//! What an article says, what a summary states, and whether the two agree.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::language::{ACTIVITIES, MONTHS, NAMES, PLACES, WEEKDAYS, patterns};

/// What an article says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The main event: what a summary may state.
    pub news: Happening,
    /// The other event: what a careless summary takes for the news.
    pub other: Happening,
}

/// Who did what, where, when, and before how many people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// A name, as `Anna`.
    pub who: String,
    /// An object, as `bakery`: the verb goes with it.
    pub what: String,
    /// A city, as `Oslo`.
    #[serde(rename = "where")]
    pub place: String,
    /// A weekday or a month, as `Monday`.
    pub when: String,
    /// People who saw it, if the article says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how_many: Option<u32>,
}

impl Happening {
    pub(super) fn new(who: &str, what: &str, place: &str, when: &str, how_many: Option<u32>) -> Self {
        let [who, what, place, when] = [who, what, place, when].map(str::to_owned);
        Self { who, what, place, when, how_many }
    }

    /// Number of facts: four or five.
    pub fn count(&self) -> usize {
        4 + usize::from(self.how_many.is_some())
    }

    fn says(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Who(who) => *who == self.who,
            Fact::What(what) => *what == self.what,
            Fact::Place(place) => *place == self.place,
            Fact::When(when) => *when == self.when,
            Fact::HowMany(count) => Some(*count) == self.how_many,
        }
    }
}

/// One fact that a text states.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// A person.
    Who(String),
    /// An event, by its object; `verb a object` where the verb does not go with the object.
    What(String),
    /// A city.
    Place(String),
    /// A weekday or month.
    When(String),
    /// A number of people.
    HowMany(u32),
}

/// The facts that a summary states, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatedFacts(pub BTreeSet<Fact>);

/// Why a summary cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unparsable {
    /// A word that is not in the language.
    #[error("expected words of the demo language, found `{0}`")]
    UnknownWord(String),
    /// A verb without its object, or an object without a verb.
    #[error("expected an event as `opened a bakery`, found `{0}`")]
    BrokenEvent(String),
    /// There is no person or no event.
    #[error("expected a person and an event, found none")]
    NothingStated,
}

/// How a summary agrees with the article.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Faithfulness {
    /// Facts stated that the article gives for its main event.
    pub supported: usize,
    /// Facts stated.
    pub stated: usize,
    /// Facts stated that belong to the article's other event.
    pub confused: usize,
    /// Facts of the article's main event that the summary leaves out.
    pub missing: usize,
    /// The summary is understood and every fact it states is supported.
    pub faithful: bool,
    /// The summary is understood. If not, all numbers but `missing` are 0.
    pub parsed: bool,
}

/// Compares a summary with what its article says.
pub fn faithfulness(facts: &Facts, summary: &str) -> Faithfulness {
    let Ok(StatedFacts(stated)) = stated_facts(summary) else {
        let missing = facts.news.count();
        return Faithfulness {
            supported: 0,
            stated: 0,
            confused: 0,
            missing,
            faithful: false,
            parsed: false,
        };
    };
    let supported = stated.iter().filter(|fact| facts.news.says(fact)).count();
    Faithfulness {
        supported,
        stated: stated.len(),
        confused: stated.iter().filter(|fact| facts.other.says(fact)).count(),
        missing: facts.news.count() - supported,
        faithful: supported == stated.len(),
        parsed: true,
    }
}

/// The facts that a summary states.
///
/// Every name, event, place, day and number counts wherever it stands; all other words must be of the language.
///
/// # Errors
/// [`Unparsable`] where the text is not of the language, or names no person or no event.
pub fn stated_facts(summary: &str) -> Result<StatedFacts, Unparsable> {
    let words: Vec<&str> =
        summary.split_whitespace().map(|word| word.trim_end_matches(['.', ',', '?'])).collect();
    let mut stated = BTreeSet::new();
    let mut rest = words.as_slice();
    while let [word, after @ ..] = rest {
        rest = after;
        if is_verb(word) {
            let [article @ ("a" | "an"), object, after @ ..] = rest else {
                return Err(Unparsable::BrokenEvent((*word).into()));
            };
            let Some((_, verbs)) = ACTIVITIES.iter().find(|(known, _)| known == object) else {
                return Err(Unparsable::BrokenEvent(format!("{word} {article} {object}")));
            };
            let what =
                if verbs.contains(word) { (*object).into() } else { format!("{word} {article} {object}") };
            stated.insert(Fact::What(what));
            rest = after;
        } else if ACTIVITIES.iter().any(|(object, _)| object == word) {
            return Err(Unparsable::BrokenEvent((*word).into()));
        } else if let Some(fact) = fact(word) {
            stated.insert(fact);
        } else if !PLAIN_WORDS.contains(word.to_lowercase().as_str()) {
            return Err(Unparsable::UnknownWord((*word).into()));
        }
    }
    let has = |is: fn(&Fact) -> bool| stated.iter().any(is);
    if has(|fact| matches!(fact, Fact::Who(_))) && has(|fact| matches!(fact, Fact::What(_))) {
        Ok(StatedFacts(stated))
    } else {
        Err(Unparsable::NothingStated)
    }
}

fn is_verb(word: &str) -> bool {
    ACTIVITIES.iter().any(|(_, verbs)| verbs.contains(&word))
}

fn fact(word: &str) -> Option<Fact> {
    if NAMES.contains(&word) {
        Some(Fact::Who(word.into()))
    } else if PLACES.contains(&word) {
        Some(Fact::Place(word.into()))
    } else if WEEKDAYS.contains(&word) || MONTHS.contains(&word) {
        Some(Fact::When(word.into()))
    } else {
        word.parse().ok().map(Fact::HowMany)
    }
}

/// The words of the patterns that state nothing, in lower case.
static PLAIN_WORDS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let words = patterns().flat_map(str::split_whitespace);
    let plain = words.map(|word| word.trim_end_matches(['.', ',']).to_lowercase());
    plain.filter(|word| !word.starts_with('{')).chain(["on".into()]).collect()
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::demo::{language, rows};

    fn kinds() -> [Vec<String>; 4] {
        [
            NAMES.map(str::to_owned).into(),
            ACTIVITIES.map(|(object, _)| object.to_owned()).into(),
            PLACES.map(str::to_owned).into(),
            WEEKDAYS.iter().chain(&MONTHS).map(|day| (*day).to_owned()).collect(),
        ]
    }

    #[test]
    fn a_word_states_one_kind_of_fact() {
        let mut words: Vec<String> = kinds().concat();
        words.extend(ACTIVITIES.iter().flat_map(|(_, verbs)| verbs.iter().map(|verb| (*verb).to_owned())));
        let count = words.len();
        let distinct: HashSet<String> = words.into_iter().map(|word| word.to_lowercase()).collect();
        assert_eq!(distinct.len(), count);
        assert!(distinct.is_disjoint(&PLAIN_WORDS), "a plain word is also a fact");
    }

    proptest! {
        #[test]
        fn every_generated_summary_is_faithful_and_complete(seed in any::<u64>()) {
            for row in rows(seed).take(20) {
                let found = faithfulness(&row.facts, &row.response);
                prop_assert!(found.faithful && found.parsed, "{}: {found:?}", row.response);
                prop_assert_eq!((found.missing, found.confused), (0, 0), "{}", row.response);
                prop_assert_eq!(found.stated, row.facts.news.count());
            }
        }

        #[test]
        fn a_fact_of_the_other_event_is_detected(seed in any::<u64>(), which in 0usize..5) {
            let row = rows(seed).next().unwrap();
            let (news, other) = (&row.facts.news, &row.facts.other);
            let count = |happening: &Happening| happening.how_many.unwrap_or(0).to_string();
            let (from, to) = match which {
                0 => (news.who.clone(), other.who.clone()),
                1 => (news.what.clone(), other.what.clone()),
                2 => (news.place.clone(), other.place.clone()),
                3 => (news.when.clone(), other.when.clone()),
                // Where the article gives no number, one is made up.
                _ if news.how_many.is_none() => ("people".into(), format!("{} people", count(other))),
                _ => (format!("{} people", count(news)), format!("{} people", count(other))),
            };
            let swapped = row.response.replace("People", "people").replace(&from, &to);
            prop_assert_ne!(&swapped, &row.response.replace("People", "people"));
            let found = faithfulness(&row.facts, &swapped);
            prop_assert!(!found.faithful && found.parsed, "{swapped}: {found:?}");
            prop_assert_eq!(found.supported + 1, found.stated, "{}", swapped);
            // A swapped object keeps the verb of the news, so it is an event of nobody.
            prop_assert_eq!(found.confused, usize::from(which != 1), "{}", swapped);
        }
    }

    #[test]
    fn what_is_not_of_the_language_is_not_judged() {
        let cases = [
            ("Anna opened a shop in Oslo.", "expected an event as `opened a bakery`, found `opened a shop`"),
            ("Anna opened.", "expected an event as `opened a bakery`, found `opened`"),
            ("Anna bakery.", "expected an event as `opened a bakery`, found `bakery`"),
            ("Annna opened a bakery.", "expected words of the demo language, found `Annna`"),
            ("People came to see it.", "expected a person and an event, found none"),
            ("", "expected a person and an event, found none"),
        ];
        for (summary, expected) in cases {
            assert_eq!(stated_facts(summary).unwrap_err().to_string(), expected, "{summary}");
        }
    }

    #[test]
    fn every_pattern_of_a_summary_has_its_slots() {
        for pattern in language::SUMMARIES.iter().chain(&language::SUMMARIES_WITHOUT_NUMBER) {
            let with_number = language::SUMMARIES.contains(pattern);
            for slot in ["{who}", "{did}", "{place}"] {
                assert_eq!(pattern.matches(slot).count(), 1, "{pattern}");
            }
            assert_eq!(pattern.to_lowercase().matches("{when}").count(), 1, "{pattern}");
            assert_eq!(pattern.matches("{n}").count(), usize::from(with_number), "{pattern}");
        }
    }
}
