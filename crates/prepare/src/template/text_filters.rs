//! Jinja2's filters of texts.

use super::calls::{Args, int_of};
use super::cases::capitalized;
use super::limits::{Meter, Outcome, raised, refused, type_error};
use super::operators::{escape, part};
use super::printing::to_str;
use super::strings::{lines, replace, soft, strip};
use super::value::{Str, Val};
use super::{iterate, percent};

pub(super) fn text<'t>(name: &str, value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    match name {
        "string" => {
            let [] = args.bind(name, [], 0)?;
            if matches!(value, Val::Markup(_)) {
                Ok(value.clone())
            } else {
                Ok(Val::Str(to_str(value, meter)?))
            }
        }
        "escape" | "e" | "forceescape" => {
            let [] = args.bind(name, [], 0)?;
            if name != "forceescape" {
                return escape(value, meter).map(Val::Markup);
            }
            escape(&Val::Str(to_str(value, meter)?), meter).map(Val::Markup)
        }
        "safe" => {
            let [] = args.bind(name, [], 0)?;
            to_str(value, meter).map(Val::Markup)
        }
        "upper" | "lower" | "capitalize" | "title" => {
            let [] = args.bind(name, [], 0)?;
            let text = soft(value, meter)?;
            let changed = match name {
                "upper" => text.to_uppercase(),
                "lower" => text.to_lowercase(),
                "capitalize" => capitalized(&text),
                _ => title(&text),
            };
            Ok(as_kind(value, Str::Shared(changed.into())))
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let text = soft(value, meter)?;
            strip(&text, chars.as_ref(), true, true).map(|text| as_kind(value, text))
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) =
                (to_str(&old.expect("required"), meter)?, to_str(&new.expect("required"), meter)?);
            let count = match count {
                None | Some(Val::None) => -1,
                Some(count) => int_of(&count, meter)?,
            };
            replace(&soft(value, meter)?, &old, &new, count, meter).map(Val::Str)
        }
        "format" => format(value, args, meter),
        "wordcount" => word_count(value, args, meter),
        "urlencode" => urlencode(value, args, meter),
        "xmlattr" => xmlattr(value, args, meter),
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = width.map_or(Ok(80), |width| int_of(&width, meter))?;
            plain(value, name)?;
            center(&soft(value, meter)?, usize::try_from(width).unwrap_or(0), meter).map(Val::text)
        }
        "indent" => indent(value, args, meter),
        _ => truncate(value, args, meter),
    }
}

fn word_count<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let [] = args.bind("wordcount", [], 0)?;
    let text = soft(value, meter)?;
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    if text
        .chars()
        .any(|character| !character.is_ascii() && !character.is_alphanumeric() && !character.is_whitespace())
    {
        return refused("`wordcount` of a text with signs that are not ASCII");
    }
    let count = text.split(|character| !is_word(character)).filter(|word| !word.is_empty()).count();
    Ok(Val::Int(i128::try_from(count).expect("a length fits 128 bits")))
}

/// A changed text of markup is markup.
fn as_kind<'t>(value: &Val<'t>, text: Str<'t>) -> Val<'t> {
    if matches!(value, Val::Markup(_)) { Val::Markup(text) } else { Val::Str(text) }
}

fn plain(value: &Val<'_>, name: &str) -> Outcome<()> {
    if matches!(value, Val::Markup(_)) { refused(format_args!("`{name}` of markup")) } else { Ok(()) }
}

/// Jinja2's own: words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut begins = true;
    for character in text.chars() {
        if super::lexer::is_space(character) || "-({[<".contains(character) {
            result.push(character);
            begins = true;
        } else {
            if begins {
                result.extend(character.to_uppercase())
            } else {
                result.extend(character.to_lowercase())
            }
            begins = false;
        }
    }
    result
}

fn format<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    if !args.positional.is_empty() && !args.named.is_empty() {
        return raised("can't handle positional and keyword arguments at the same time");
    }
    plain(value, "format")?;
    let values = if args.named.is_empty() {
        Val::tuple(args.positional)?
    } else {
        Val::dict(args.named.into_iter().map(|(name, value)| (Val::Str(name), value)).collect(), meter)?
    };
    percent::format(&soft(value, meter)?, &values, meter).map(Val::text)
}

fn center(text: &str, width: usize, meter: &Meter) -> Outcome<String> {
    let missing = width.saturating_sub(text.chars().count());
    meter.text(missing.saturating_add(text.len()))?;
    let left = missing / 2 + (missing & width & 1);
    Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)))
}

fn indent<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    plain(value, "indent")?;
    let Val::Str(text) = value else {
        return match value {
            Val::Undefined(undefined) => super::operators::undefined_error(undefined),
            other => type_error(format!("`indent` takes a text, found '{}'", other.type_name())),
        };
    };
    let indention = match &width {
        Some(Val::Str(indention)) => indention.to_string(),
        Some(width) => {
            let width = usize::try_from(int_of(width, meter)?).unwrap_or(0);
            meter.text(width)?;
            " ".repeat(width)
        }
        None => " ".repeat(4),
    };
    let (first, blank) =
        (first.is_some_and(|first| first.is_true()), blank.is_some_and(|blank| blank.is_true()));
    let text = Str::Shared(format!("{}\n", &**text).into());
    let lines = lines(&text, false);
    meter.text(text.len().saturating_add(lines.len().saturating_mul(indention.len() + 1)))?;
    let mut out = if first { indention.clone() } else { String::new() };
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(Val::text(out))
}

fn truncate<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let [length, killwords, end, leeway] =
        args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = length.map_or(Ok(255), |length| int_of(&length, meter))?;
    let end = end.unwrap_or(Val::borrowed("..."));
    let leeway = match leeway {
        None | Some(Val::None) => 5,
        Some(leeway) => int_of(&leeway, meter)?,
    };
    let (Val::Str(text), Val::Str(end)) = (value, &end) else {
        return refused(format_args!("`truncate` of `{}`", value.type_name()));
    };
    let count = |text: &str| i128::try_from(text.chars().count()).expect("a length fits 128 bits");
    let kept = length - count(end);
    if kept < 0 || leeway < 0 {
        return raised("expected a length of at least that of the end, and a leeway from 0");
    }
    meter.text(text.len() + end.len())?;
    if count(text) <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let kept = usize::try_from(kept).expect("below the text's length");
    let at = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
    let begin = part(text, 0..at);
    let begin = match begin.rfind(' ').filter(|_| !killwords.is_some_and(|killwords| killwords.is_true())) {
        Some(space) => &begin[..space],
        None => &*begin,
    };
    Ok(Val::text(format!("{begin}{}", &**end)))
}

fn quoted(value: &Val<'_>, slash_stays: bool, meter: &Meter) -> Outcome<String> {
    let text = to_str(value, meter)?;
    meter.text(text.len() * 3)?;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if slash_stays => out.push('/'),
            b' ' if !slash_stays => out.push('+'),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

fn urlencode<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let [] = args.bind("urlencode", [], 0)?;
    let pairs = match value {
        Val::Dict(dict) => {
            let pair = |(key, value): &(Val<'t>, Val<'t>)| vec![key.clone(), value.clone()];
            dict.entries.iter().map(pair).collect()
        }
        Val::List(seq) | Val::Tuple(seq) => {
            let pairs: Outcome<Vec<Vec<Val<'t>>>> =
                seq.items.iter().map(|pair| iterate::list(pair, meter)).collect();
            pairs?
        }
        Val::Str(_) | Val::Markup(_) | Val::None | Val::Bool(_) | Val::Int(_) | Val::Float(_) => {
            return quoted(value, true, meter).map(Val::text);
        }
        other => return refused(format_args!("`urlencode` of `{}`", other.type_name())),
    };
    let mut parts = Vec::new();
    for pair in pairs {
        let [key, value] = pair.as_slice() else { return raised("expected pairs to encode") };
        parts.push(format!("{}={}", quoted(key, false, meter)?, quoted(value, false, meter)?));
    }
    Ok(Val::text(parts.join("&")))
}

fn xmlattr<'t>(value: &Val<'t>, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    let [space] = args.bind("xmlattr", ["autospace"], 0)?;
    let Val::Dict(dict) = value else { return type_error("`xmlattr` takes a dictionary") };
    let mut parts = Vec::new();
    for (key, value) in &dict.entries {
        if matches!(value, Val::None | Val::Undefined(_)) {
            continue;
        }
        let Some(name) = key.as_str() else { return type_error("expected names of attributes as texts") };
        if name.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return raised("Invalid character in attribute name");
        }
        parts.push(format!("{}=\"{}\"", &*escape(key, meter)?, &*escape(value, meter)?));
    }
    let joined = parts.join(" ");
    let space = space.is_none_or(|space| space.is_true()) && !joined.is_empty();
    Ok(Val::text(if space { format!(" {joined}") } else { joined }))
}
