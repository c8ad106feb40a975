//! Methods of Python's `str`.

use super::calls::{Args, int_of};
use super::cases::without_arguments;
use super::lexer::is_space;
use super::limits::{Meter, Outcome, refused, type_error, value_error};
use super::methods::Found;
use super::operators::{part, undefined_error};
use super::padding::pad;
use super::printing::to_str;
use super::render::Renderer;
use super::value::{Str, Val};
use super::{formatting, iterate};

const METHODS: [&str; 43] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "isprintable",
];
const REFUSED: [&str; 4] = ["encode", "isidentifier", "maketrans", "translate"];
/// What keeps markup what it is, because it takes no other text.
const OF_MARKUP: [&str; 14] = [
    "strip",
    "lstrip",
    "rstrip",
    "upper",
    "lower",
    "title",
    "capitalize",
    "startswith",
    "endswith",
    "find",
    "count",
    "index",
    "swapcase",
    "casefold",
];

pub(super) fn method(name: &str) -> Option<Found> {
    if REFUSED.contains(&name) {
        return Some(Found::Refused);
    }
    METHODS.into_iter().find(|method| *method == name).map(Found::Method)
}

fn owned<'t>(text: impl Into<std::rc::Rc<str>>) -> Outcome<Val<'t>> {
    Ok(Val::text(text))
}

/// The text of an argument.
pub(super) fn text_of<'a>(value: &'a Val<'_>) -> Outcome<&'a str> {
    match value {
        Val::Undefined(undefined) => undefined_error(undefined),
        other => match other.as_str() {
            Some(text) => Ok(text),
            None => type_error(format!("expected str, found '{}'", other.type_name())),
        },
    }
}

impl<'t> Renderer<'t, '_> {
    pub(super) fn call_text_method(
        &mut self,
        receiver: &Val<'t>,
        name: &'static str,
        args: Args<'t>,
    ) -> Outcome<Val<'t>> {
        let (Val::Str(text) | Val::Markup(text)) = receiver else { unreachable!("a method of texts") };
        self.meter.text(text.len())?;
        if let Val::Str(_) = receiver {
            return self.text_method(text, name, args);
        }
        if !OF_MARKUP.contains(&name) {
            return refused(format_args!("the method `{name}` of markup"));
        }
        Ok(match self.text_method(text, name, args)? {
            Val::Str(text) => Val::Markup(text),
            other => other,
        })
    }

    fn text_method(&mut self, text: &Str<'t>, name: &'static str, args: Args<'t>) -> Outcome<Val<'t>> {
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = args.places(name, 0)?;
                strip(text, chars.as_ref(), name != "rstrip", name != "lstrip").map(Val::Str)
            }
            "split" | "rsplit" => self.split(text, name == "rsplit", args),
            "splitlines" => {
                let [keep] = args.bind(name, ["keepends"], 0)?;
                let lines = lines(text, keep.is_some_and(|keep| keep.is_true()));
                self.meter.steps(lines.len())?;
                Val::list(lines.into_iter().map(Val::Str).collect())
            }
            "partition" | "rpartition" => partition(text, name == "rpartition", args),
            "startswith" | "endswith" => starts_or_ends(text, name, args).map(Val::Bool),
            "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args),
            "removeprefix" | "removesuffix" => {
                let [affix] = args.places(name, 1)?;
                let affix = affix.expect("required");
                let affix = text_of(&affix)?;
                let range = match name {
                    "removeprefix" if text.starts_with(affix) => affix.len()..text.len(),
                    "removesuffix" if text.ends_with(affix) => 0..text.len() - affix.len(),
                    _ => 0..text.len(),
                };
                Ok(Val::Str(part(text, range)))
            }
            "replace" => {
                let [old, new, count] = args.places(name, 2)?;
                let (old, new) = (old.expect("required"), new.expect("required"));
                let count = count.map_or(Ok(-1), |count| int_of(&count, self.meter))?;
                replace(text, text_of(&old)?, text_of(&new)?, count, self.meter).map(Val::Str)
            }
            "join" => {
                let [items] = args.places(name, 1)?;
                self.join(text, &items.expect("required"))
            }
            "format" | "format_map" => self.format_method(text, name, args),
            "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => pad(text, name, args, self.meter),
            _ => {
                let [] = args.places(name, 0)?;
                without_arguments(text, name)
            }
        }
    }

    fn format_method(&mut self, text: &Str<'t>, name: &str, args: Args<'t>) -> Outcome<Val<'t>> {
        if name == "format" {
            return formatting::format(self, text, &args).map(Val::text);
        }
        let [mapping] = args.places(name, 1)?;
        let Some(Val::Dict(dict)) = mapping else {
            return refused("`format_map` of anything but a dictionary");
        };
        let mut args = Args::default();
        for (key, value) in &dict.entries {
            if let Val::Str(key) = key {
                args.named.push((key.clone(), value.clone()));
            }
        }
        formatting::format(self, text, &args).map(Val::text)
    }

    fn split(&mut self, text: &Str<'t>, from_right: bool, args: Args<'t>) -> Outcome<Val<'t>> {
        let [separator, count] = args.bind("split", ["sep", "maxsplit"], 0)?;
        let count = count.map_or(Ok(-1), |count| int_of(&count, self.meter))?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let ranges = match &separator {
            None | Some(Val::None) => split_space(text, count, from_right),
            Some(separator) => {
                let separator = text_of(separator)?;
                if separator.is_empty() {
                    return value_error("empty separator");
                }
                split_at(text, separator, count, from_right)
            }
        };
        self.meter.steps(ranges.len())?;
        Val::list(ranges.into_iter().map(|range| Val::Str(part(text, range))).collect())
    }

    fn join(&mut self, separator: &str, items: &Val<'t>) -> Outcome<Val<'t>> {
        if items.is_undefined() {
            return owned("");
        }
        let mut joined = String::new();
        let mut items = iterate::items(items).or_else(|_| type_error("can only join an iterable"))?;
        let mut first = true;
        while let Some(item) = items.next(self.meter)? {
            if !std::mem::take(&mut first) {
                joined.push_str(separator);
            }
            match &item {
                Val::Str(text) => {
                    self.meter.text(text.len() + separator.len())?;
                    joined.push_str(text);
                }
                Val::Markup(_) => return refused("`join` of markup"),
                other => {
                    let found = other.type_name();
                    return type_error(format!("sequence item: expected str instance, {found} found"));
                }
            }
            self.meter.size(joined.len())?;
        }
        owned(joined)
    }
}

type Range = std::ops::Range<usize>;

fn split_at(text: &str, separator: &str, count: usize, from_right: bool) -> Vec<Range> {
    let length = separator.len();
    let mut ranges = Vec::new();
    if !from_right {
        let mut from = 0;
        for (at, _) in text.match_indices(separator).take(count) {
            ranges.push(from..at);
            from = at + length;
        }
        ranges.push(from..text.len());
        return ranges;
    }
    let mut to = text.len();
    for (at, _) in text.rmatch_indices(separator).take(count) {
        ranges.push(at + length..to);
        to = at;
    }
    ranges.push(0..to);
    ranges.reverse();
    ranges
}

/// Words between white space; of `count` splits the rest keeps its own.
fn split_space(text: &str, count: usize, from_right: bool) -> Vec<Range> {
    let mut ranges = Vec::new();
    let (mut from, mut to) = (0, text.len());
    loop {
        let rest = &text[from..to];
        let left = from + (rest.len() - rest.trim_start_matches(is_space).len());
        let right = from + rest.trim_end_matches(is_space).len();
        if left >= right {
            break;
        }
        if !from_right {
            let word = text[left..to].find(is_space).filter(|_| ranges.len() < count);
            let Some(word) = word else {
                // The last one ends with the text, without the space at its end unless the splits are used up.
                let end = if ranges.len() < count { right } else { to };
                ranges.push(left..end);
                break;
            };
            ranges.push(left..left + word);
            from = left + word;
        } else {
            let space = text[from..right].char_indices().rev().find(|(_, character)| is_space(*character));
            let Some((space, character)) = space.filter(|_| ranges.len() < count) else {
                let begin = if ranges.len() < count { left } else { from };
                ranges.push(begin..right);
                break;
            };
            ranges.push(from + space + character.len_utf8()..right);
            to = from + space;
        }
    }
    if from_right {
        ranges.reverse();
    }
    ranges
}

/// What `str.splitlines` takes for the end of a line.
fn ends_line(character: char) -> bool {
    matches!(
        character,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

pub(super) fn lines<'t>(text: &Str<'t>, keep: bool) -> Vec<Str<'t>> {
    let mut lines = Vec::new();
    let mut from = 0;
    while from < text.len() {
        let rest = &text[from..];
        let Some((length, character)) = rest.char_indices().find(|(_, character)| ends_line(*character))
        else {
            lines.push(part(text, from..text.len()));
            break;
        };
        let end = if rest[length..].starts_with("\r\n") { 2 } else { character.len_utf8() };
        lines.push(part(text, from..from + length + if keep { end } else { 0 }));
        from += length + end;
    }
    lines
}

/// `strip` and its sides; without characters white space goes.
pub(super) fn strip<'t>(
    text: &Str<'t>,
    chars: Option<&Val<'t>>,
    left: bool,
    right: bool,
) -> Outcome<Str<'t>> {
    let chars = match chars {
        None | Some(Val::None) => None,
        Some(chars) => Some(text_of(chars)?),
    };
    let goes = |character: char| chars.map_or_else(|| is_space(character), |chars| chars.contains(character));
    let kept: &str = text;
    let kept = if left { kept.trim_start_matches(goes) } else { kept };
    let from = text.len() - kept.len();
    let kept = if right { kept.trim_end_matches(goes) } else { kept };
    Ok(part(text, from..from + kept.len()))
}

/// The first `count` places of `old` with `new`, all with a negative count.
pub(super) fn replace<'t>(
    text: &Str<'t>,
    old: &str,
    new: &str,
    count: i128,
    meter: &Meter,
) -> Outcome<Str<'t>> {
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let count = usize::try_from(count).map_or(found, |count| count.min(found));
    if count == 0 {
        return Ok(text.clone());
    }
    meter.text(text.len() + count.saturating_mul(new.len()))?;
    Ok(Str::Shared(text.replacen(old, new, count).into()))
}

fn partition<'t>(text: &Str<'t>, from_right: bool, args: Args<'t>) -> Outcome<Val<'t>> {
    let [separator] = args.places("partition", 1)?;
    let separator = separator.expect("required");
    let separator_text = text_of(&separator)?;
    if separator_text.is_empty() {
        return value_error("empty separator");
    }
    let at = if from_right { text.rfind(separator_text) } else { text.find(separator_text) };
    let empty = || Val::borrowed("");
    Val::tuple(match at {
        Some(at) => {
            let after = at + separator_text.len();
            vec![Val::Str(part(text, 0..at)), separator, Val::Str(part(text, after..text.len()))]
        }
        None if from_right => vec![empty(), empty(), Val::Str(text.clone())],
        None => vec![Val::Str(text.clone()), empty(), empty()],
    })
}

/// The part of a text that `start` and `stop` in characters take, with the bytes before it; `None` where `start` lies
/// behind the end.
fn window<'a>(
    text: &'a str,
    start: Option<Val<'_>>,
    stop: Option<Val<'_>>,
) -> Outcome<Option<(&'a str, usize)>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some((text, 0)));
    }
    let length = i128::try_from(text.chars().count()).expect("a length fits 128 bits");
    let bound = |bound: Option<Val<'_>>, default: i128| -> Outcome<i128> {
        let bound = match bound {
            None | Some(Val::None) => return Ok(default),
            Some(bound) => match bound.as_int() {
                Some(int) => int,
                None => return type_error("slice indices must be integers or None"),
            },
        };
        Ok(if bound < 0 { bound.saturating_add(length).max(0) } else { bound })
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, length)?.min(length));
    if start > length || start > stop {
        return Ok(None);
    }
    let byte = |place: i128| {
        let place = usize::try_from(place).expect("inside of the text");
        text.char_indices().nth(place).map_or(text.len(), |(at, _)| at)
    };
    Ok(Some((&text[byte(start)..byte(stop)], byte(start))))
}

fn starts_or_ends(text: &str, name: &str, args: Args<'_>) -> Outcome<bool> {
    let [affix, start, stop]: [Option<Val<'_>>; 3] = args.places(name, 1)?;
    let affix = affix.expect("required");
    let Some((text, _)) = window(text, start, stop)? else { return Ok(false) };
    let fits = |affix: &Val<'_>| -> Outcome<bool> {
        let affix = text_of(affix)?;
        Ok(if name == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) })
    };
    let Val::Tuple(affixes) = &affix else { return fits(&affix) };
    for affix in &affixes.items {
        if fits(affix)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn find<'t>(text: &str, name: &str, args: Args<'t>) -> Outcome<Val<'t>> {
    let [wanted, start, stop]: [Option<Val<'t>>; 3] = args.places(name, 1)?;
    let wanted = wanted.expect("required");
    let wanted = text_of(&wanted)?;
    let window = window(text, start, stop)?;
    let number = |count: usize| Val::Int(i128::try_from(count).expect("a length fits 128 bits"));
    if name == "count" {
        let Some((part, _)) = window else { return Ok(Val::Int(0)) };
        return Ok(number(if wanted.is_empty() {
            part.chars().count() + 1
        } else {
            part.matches(wanted).count()
        }));
    }
    let found = window.and_then(|(part, before)| {
        let at = if name.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
        at.map(|at| before + at)
    });
    match found {
        Some(at) => Ok(number(text[..at].chars().count())),
        None if name.ends_with("find") => Ok(Val::Int(-1)),
        None => value_error("substring not found"),
    }
}

/// `str` of a value, for filters that take any.
pub(super) fn soft<'t>(value: &Val<'t>, meter: &Meter) -> Outcome<Str<'t>> {
    let text = to_str(value, meter)?;
    meter.text(text.len())?;
    Ok(text)
}
