//! The Porter stemmer as NLTK has it by default, which is what ROUGE scores are computed with.
//!
//! Source: M. F. Porter, "An algorithm for suffix stripping" (1980), with the extensions of NLTK's `PorterStemmer`
//! in its mode `NLTK_EXTENSIONS` (irregular forms, short words, `-ied`, `-y`, `-alli`, `-bli`, `-fulli`, `-logi`).
//! Neither the original algorithm nor Snowball's English stemmer gives the same stems.

/// Words whose stem no rule finds.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a lower-case word of ASCII letters and digits.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let word = plural(word);
    let word = past_or_progressive(&word);
    let word = final_y(&word);
    let word = double_suffix(&word);
    let word = replace(&word, &STEP_3, |stem| measure(stem) > 0);
    let word = single_suffix(&word);
    let word = final_e(&word);
    final_double_l(&word)
}

/// A suffix and what takes its place.
type Rule = (&'static str, &'static str);

const STEP_1A: [Rule; 4] = [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")];

const STEP_2: [Rule; 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: [Rule; 7] = [
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

const STEP_4: [Rule; 19] = [
    ("al", ""),
    ("ance", ""),
    ("ence", ""),
    ("er", ""),
    ("ic", ""),
    ("able", ""),
    ("ible", ""),
    ("ant", ""),
    ("ement", ""),
    ("ment", ""),
    ("ent", ""),
    ("ion", ""),
    ("ou", ""),
    ("ism", ""),
    ("ate", ""),
    ("iti", ""),
    ("ous", ""),
    ("ive", ""),
    ("ize", ""),
];

/// Applies the first rule whose suffix the word has, if its stem satisfies `condition`; no later rule is tried.
fn replace(word: &str, rules: &[Rule], condition: impl Fn(&str) -> bool) -> String {
    let matching =
        rules.iter().find_map(|(suffix, replacement)| Some((word.strip_suffix(suffix)?, replacement)));
    match matching {
        Some((stem, replacement)) if condition(stem) => format!("{stem}{replacement}"),
        _ => word.to_owned(),
    }
}

/// Step 1a: caresses → caress, ponies → poni, dies → die, cats → cat.
fn plural(word: &str) -> String {
    if word.len() == 4 && word.ends_with("ies") {
        return word[..3].to_owned();
    }
    replace(word, &STEP_1A, |_| true)
}

/// Step 1b: agreed → agree, plastered → plaster, died → die, hopping → hop, filing → file.
fn past_or_progressive(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { format!("{stem}ee") } else { word.to_owned() };
    }
    let stem =
        ["ed", "ing"].iter().filter_map(|suffix| word.strip_suffix(suffix)).find(|stem| has_vowel(stem));
    let Some(stem) = stem else {
        return word.to_owned();
    };
    if ["at", "bl", "iz"].iter().any(|suffix| stem.ends_with(suffix)) {
        format!("{stem}e")
    } else if ends_in_double_consonant(stem) {
        let keeps_both = stem.ends_with(['l', 's', 'z']);
        stem[..stem.len() - usize::from(!keeps_both)].to_owned()
    } else if measure(stem) == 1 && ends_in_short_syllable(stem) {
        format!("{stem}e")
    } else {
        stem.to_owned()
    }
}

/// Step 1c: happy → happi, fly → fli, enjoy → enjoy.
fn final_y(word: &str) -> String {
    match word.strip_suffix('y') {
        Some(stem) if stem.len() > 1 && consonants(stem).last() == Some(true) => format!("{stem}i"),
        _ => word.to_owned(),
    }
}

/// Step 2: relational → relate, digitizer → digitize, radically → radical, geologi → geolog.
fn double_suffix(word: &str) -> String {
    if word.strip_suffix("alli").is_some_and(|stem| measure(stem) > 0) {
        return double_suffix(&word[..word.len() - 2]);
    }
    // The l of -logi counts as part of the stem, so that geo- and theo- are long enough. No other suffix ends so.
    if let Some(stem) = word.strip_suffix("ogi").filter(|stem| stem.ends_with('l')) {
        return if measure(stem) > 0 { format!("{stem}og") } else { word.to_owned() };
    }
    replace(word, &STEP_2, |stem| measure(stem) > 0)
}

/// Step 4: revival → reviv, adjustment → adjust, adoption → adopt.
fn single_suffix(word: &str) -> String {
    let after_s_or_t = |stem: &str| !word.ends_with("ion") || stem.ends_with(['s', 't']);
    replace(word, &STEP_4, |stem| measure(stem) > 1 && after_s_or_t(stem))
}

/// Step 5a: probate → probat, cease → ceas, rate → rate.
fn final_e(word: &str) -> String {
    match word.strip_suffix('e') {
        Some(stem) if measure(stem) > 1 || (measure(stem) == 1 && !ends_in_short_syllable(stem)) => {
            stem.to_owned()
        }
        _ => word.to_owned(),
    }
}

/// Step 5b: controll → control, roll → roll.
fn final_double_l(word: &str) -> String {
    match word.strip_suffix('l') {
        Some(stem) if stem.ends_with('l') && measure(stem) > 1 => stem.to_owned(),
        _ => word.to_owned(),
    }
}

/// For each letter, whether it is a consonant: no vowel, and no y after a consonant.
fn consonants(word: &str) -> impl Iterator<Item = bool> {
    word.bytes().scan(false, |previous, letter| {
        *previous = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*previous,
            _ => true,
        };
        Some(*previous)
    })
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    consonants(stem).zip(consonants(stem).skip(1)).filter(|&pair| pair == (false, true)).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

/// Porter's *d.
fn ends_in_double_consonant(word: &str) -> bool {
    let letters = word.as_bytes();
    letters.len() >= 2
        && letters[letters.len() - 1] == letters[letters.len() - 2]
        && consonants(word).last() == Some(true)
}

/// Porter's *o: consonant, vowel, consonant other than w, x and y; and two letters, a vowel and a consonant.
fn ends_in_short_syllable(word: &str) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds[..] {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::stem;

    /// Words, each followed by its stem by NLTK 3.10.4, `PorterStemmer().stem`.
    const VECTORS: &str = "caresses caress ponies poni ties tie caress caress cats cat dies die flies fli feed feed agreed agre \
        disabled disabl bled bled plastered plaster motoring motor sing sing conflated conflat troubled \
        troubl sized size hopping hop tanned tan falling fall hissing hiss fizzed fizz failing fail filing \
        file died die spied spi tied tie happy happi sky sky skies sky enjoy enjoy enjoyment enjoy fly fli \
        by by relational relat conditional condit rational ration valenci valenc hesitanci hesit digitizer \
        digit conformabli conform radicalli radic differentli differ vileli vile analogousli analog \
        vietnamization vietnam predication predic operator oper feudalism feudal decisiveness decis \
        hopefulness hope callousness callous formaliti formal sensitiviti sensit sensibiliti sensibl \
        triplicate triplic formative form formalize formal electriciti electr electrical electr hopeful hope \
        goodness good revival reviv allowance allow inference infer airliner airlin gyroscopic gyroscop \
        adjustable adjust defensible defens irritant irrit replacement replac adjustment adjust dependent \
        depend adoption adopt homologou homolog communism commun activate activ angulariti angular \
        homologous homolog effective effect bowdlerize bowdler probate probat rate rate cease ceas controll \
        control roll roll dying die lying lie news news innings inning proceed proceed succeeded succeed \
        exceed exceed howe howe geology geolog theology theolog archaeologi archaeolog logi logi sayings say \
        owing owe owed owe ally alli rally ralli really realli logically logic fully fulli hopefully hope \
        possibly possibl ably abli yyyy yyyi syzygy syzygi toy toy yellowy yellowi 1990s 1990 2nd 2nd 90ing \
        90ing mixing mix boxed box snowed snow aging age ailing ail eyeing eye oed o used use using use abed \
        abe is is a a";

    #[test]
    fn agrees_with_nltk() {
        let vectors: Vec<&str> = VECTORS.split(' ').collect();
        for pair in vectors.chunks(2) {
            assert_eq!(stem(pair[0]), pair[1], "{}", pair[0]);
        }
    }
}
