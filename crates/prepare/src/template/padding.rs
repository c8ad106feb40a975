//! Methods of Python's `str` that fill a text up to a width.

use super::calls::{Args, int_of};
use super::limits::{Meter, Outcome, type_error};
use super::strings::text_of;
use super::value::{Str, Val};

/// `center`, `ljust`, `rjust`, `zfill` and `expandtabs`.
pub(super) fn pad<'t>(text: &Str<'t>, name: &str, args: Args<'t>, meter: &Meter) -> Outcome<Val<'t>> {
    if name == "expandtabs" {
        let [size] = args.bind(name, ["tabsize"], 0)?;
        let size = size.map_or(Ok(8), |size| int_of(&size, meter))?;
        return expand_tabs(text, usize::try_from(size).unwrap_or(0), meter).map(Val::text);
    }
    let [width, fill]: [Option<Val<'t>>; 2] = args.places(name, 1)?;
    let width = usize::try_from(int_of(&width.expect("required"), meter)?).unwrap_or(0);
    let fill = match (&fill, name) {
        (Some(_), "zfill") => return type_error("zfill() takes exactly one argument"),
        (None, "zfill") => '0',
        (None, _) => ' ',
        (Some(fill), _) => {
            let mut characters = text_of(fill)?.chars();
            match (characters.next(), characters.next()) {
                (Some(fill), None) => fill,
                _ => return type_error("the fill character must be exactly one character long"),
            }
        }
    };
    let length = text.chars().count();
    let Some(missing) = width.checked_sub(length).filter(|missing| *missing > 0) else {
        return Ok(Val::Str(text.clone()));
    };
    meter.text(missing.saturating_mul(4).saturating_add(text.len()))?;
    let filled = |count: usize| String::from(fill).repeat(count);
    Ok(Val::text(match name {
        "ljust" => format!("{}{}", &**text, filled(missing)),
        "rjust" => format!("{}{}", filled(missing), &**text),
        "zfill" => {
            let sign = usize::from(text.starts_with(['+', '-']));
            format!("{}{}{}", &text[..sign], filled(missing), &text[sign..])
        }
        // CPython puts the odd one to the left where the width is odd.
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{}{}", filled(left), &**text, filled(missing - left))
        }
    }))
}

fn expand_tabs(text: &str, size: usize, meter: &Meter) -> Outcome<String> {
    let tabs = text.matches('\t').count();
    meter.text(text.len().saturating_add(tabs.saturating_mul(size)))?;
    let mut expanded = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            _ => {
                column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
                expanded.push(character);
            }
        }
    }
    Ok(expanded)
}
