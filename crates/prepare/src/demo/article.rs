//! Articles and summaries, drawn from the patterns of the language.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::DemoRow;
use super::facts::{Facts, Happening};
use super::language::{
    ACTIVITIES, COUNTS, FILLERS, INSTRUCTIONS, LEADS, MONTHS, NAMES, NUMBERS, OTHERS, PLACES, SUMMARIES,
    SUMMARIES_WITHOUT_NUMBER, WEEKDAYS,
};

/// How often an article gives the number of people.
const WITH_NUMBER: f64 = 0.75;
/// How often a second sentence without facts is put in.
const WITH_SECOND_FILLER: f64 = 0.5;

/// A row: facts, an article that tells them, and one of the right summaries.
pub(super) fn row(random: &mut impl Rng) -> DemoRow {
    let facts = facts(random);
    let (news, other) = (&facts.news, &facts.other);

    let mut told = vec![sentence(random, &LEADS, news)];
    if news.how_many.is_some() {
        told.push(sentence(random, &COUNTS, news));
    }
    let other = sentence(random, &OTHERS, other);
    let other_first = random.random_bool(0.25) && !other.starts_with("It ") && !other.contains("not come");
    told.insert(if other_first { 0 } else { told.len() }, other);
    let fillers = two(random, &FILLERS).map(str::to_owned);
    told.extend(fillers.into_iter().take(1 + usize::from(random.random_bool(WITH_SECOND_FILLER))));
    let wordings: &[&str] = if news.how_many.is_some() { &SUMMARIES } else { &SUMMARIES_WITHOUT_NUMBER };
    DemoRow {
        instruction: pick(random, &INSTRUCTIONS).to_owned(),
        context: told.join(" "),
        response: sentence(random, wordings, news),
        category: "summarization".into(),
        facts,
    }
}

/// Two happenings that agree in nothing.
fn facts(random: &mut impl Rng) -> Facts {
    let when: Vec<&str> = WEEKDAYS.iter().chain(&MONTHS).copied().collect();
    let numbers: Vec<u32> = NUMBERS.collect();
    let objects: Vec<&str> = ACTIVITIES.iter().map(|(object, _)| *object).collect();
    let [who, other_who] = two(random, &NAMES);
    let [what, other_what] = two(random, &objects);
    let [place, other_place] = two(random, &PLACES);
    let [day, other_day] = two(random, &when);
    let [count, other_count] = two(random, &numbers);
    let how_many = random.random_bool(WITH_NUMBER).then_some(count);
    Facts {
        news: Happening::new(who, what, place, day, how_many),
        other: Happening::new(other_who, other_what, other_place, other_day, Some(other_count)),
    }
}

fn pick<'a>(random: &mut impl Rng, choices: &[&'a str]) -> &'a str {
    choices.choose(random).expect("the language has no empty list")
}

fn two<T: Copy>(random: &mut impl Rng, choices: &[T]) -> [T; 2] {
    let [first, second] =
        rand::seq::index::sample_array(random, choices.len()).expect("lists have two entries");
    [choices[first], choices[second]]
}

/// One of the patterns with its slots filled.
fn sentence(random: &mut impl Rng, patterns: &[&str], happening: &Happening) -> String {
    let (_, verbs) = ACTIVITIES
        .iter()
        .find(|(object, _)| *object == happening.what)
        .expect("a generated happening has an object of the language");
    let did = format!("{} a {}", pick(random, verbs), happening.what);
    let (on, on_capital) =
        if WEEKDAYS.contains(&happening.when.as_str()) { ("on", "On") } else { ("in", "In") };
    let count = happening.how_many.map(|count| count.to_string()).unwrap_or_default();
    pick(random, patterns)
        .replace("{who}", &happening.who)
        .replace("{did}", &did)
        .replace("{place}", &happening.place)
        .replace("{when}", &format!("{on} {}", happening.when))
        .replace("{When}", &format!("{on_capital} {}", happening.when))
        .replace("{n}", &count)
}
