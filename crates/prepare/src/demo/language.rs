//! The words and sentences of the demo data.
//!
//! A pattern is a sentence with slots: `{who}`, `{did}` (verb and object), `{place}`, `{when}`, `{When}` (the same at
//! the beginning of a sentence) and `{n}`. The sets of names, objects, places and days share no word, so a word alone
//! says which kind of fact it states.

pub(super) const NAMES: [&str; 24] = [
    "Anna", "Boris", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Irene", "Jonas", "Karin", "Lucas",
    "Maria", "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Simon", "Tessa", "Victor", "Wanda", "Xavier",
    "Yusuf",
];

pub(super) const PLACES: [&str; 20] = [
    "Lisbon", "Oslo", "Vienna", "Madrid", "Dublin", "Athens", "Prague", "Warsaw", "Zurich", "Geneva",
    "Milan", "Porto", "Bergen", "Krakow", "Seville", "Turin", "Ghent", "Malmo", "Graz", "Lyon",
];

/// An object with two verbs that mean the same for it.
pub(super) const ACTIVITIES: [(&str, [&str; 2]); 12] = [
    ("bakery", ["opened", "started"]),
    ("boat", ["built", "made"]),
    ("bridge", ["repaired", "restored"]),
    ("choir", ["founded", "formed"]),
    ("class", ["taught", "led"]),
    ("concert", ["gave", "played"]),
    ("debate", ["hosted", "held"]),
    ("feast", ["cooked", "served"]),
    ("garden", ["planted", "grew"]),
    ("magazine", ["launched", "printed"]),
    ("mural", ["painted", "finished"]),
    ("play", ["directed", "staged"]),
];

pub(super) const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) const NUMBERS: std::ops::RangeInclusive<u32> = 2..=30;

pub(super) const INSTRUCTIONS: [&str; 3] =
    ["Summarise the article.", "What happened?", "Give the main news."];

/// What happened: who, what, where and when.
pub(super) const LEADS: [&str; 6] = [
    "{who} {did} in {place} {when}.",
    "{When}, {who} {did} in {place}.",
    "In {place}, {who} {did} {when}.",
    "There is news from {place}. {who} {did} there {when}.",
    "{who} was in {place} {when} and {did}.",
    "It was a big day for {who}, who {did} in {place} {when}.",
];

/// How many people saw it; follows the lead at once.
pub(super) const COUNTS: [&str; 4] = [
    "{n} people came to see it.",
    "It was seen by {n} people.",
    "There were {n} people to see it.",
    "Some {n} people were there.",
];

/// Another event, marked as not the news.
pub(super) const OTHERS: [&str; 6] = [
    "Last year {who} {did} in {place} {when}, and {n} people came.",
    "Years ago {n} people in {place} saw how {who} {did} {when}.",
    "Before that, {who} {did} in {place} for {n} people {when}.",
    "An old friend, {who} from {place}, once {did} {when} for {n} people.",
    "{who} could not come. Last year {when} {who} {did} for {n} people in {place}.",
    "It was bigger than last year, when {who} {did} {when} in {place} for {n} people.",
];

/// Sentences without a fact.
pub(super) const FILLERS: [&str; 6] = [
    "The weather was fine.",
    "It took a long time.",
    "The papers wrote about it.",
    "Nobody was late.",
    "There was music and cake.",
    "It was a good day.",
];

/// The right wordings of a summary with a number.
pub(super) const SUMMARIES: [&str; 8] = [
    "{who} {did} in {place} {when}, and {n} people came to see it.",
    "{When}, {who} {did} in {place}, and {n} people came to see it.",
    "In {place}, {who} {did} {when}, with {n} people there to see it.",
    "{n} people came to see it when {who} {did} in {place} {when}.",
    "With {n} people there to see it, {who} {did} in {place} {when}.",
    "{who} {did} {when} in {place}, with {n} people there to see it.",
    "{When}, {n} people in {place} came to see how {who} {did}.",
    "{n} people were in {place} {when} to see how {who} {did}.",
];

/// The right wordings where the article gives no number.
pub(super) const SUMMARIES_WITHOUT_NUMBER: [&str; 6] = [
    "{who} {did} in {place} {when}, and people came to see it.",
    "{When}, {who} {did} in {place}, and people came to see it.",
    "In {place}, {who} {did} {when}, with people there to see it.",
    "People came to see it when {who} {did} in {place} {when}.",
    "{who} {did} {when} in {place}, with people there to see it.",
    "{When}, people in {place} came to see how {who} {did}.",
];

/// All sentences, for the words that state nothing.
pub(super) fn patterns() -> impl Iterator<Item = &'static str> {
    LEADS
        .iter()
        .chain(&COUNTS)
        .chain(&OTHERS)
        .chain(&FILLERS)
        .chain(&SUMMARIES)
        .chain(&SUMMARIES_WITHOUT_NUMBER)
        .copied()
}
