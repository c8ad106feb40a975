//! Jinja2's lexer, as transformers sets it up: `trim_blocks`, `lstrip_blocks`, no trailing newline, newlines as `\n`.

use std::borrow::Cow;

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text that is written as it is.
    Data(String),
    /// `{{`
    VariableBegin,
    /// `}}`
    VariableEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    Name(String),
    Text(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// What is wrong with a template, and in which line.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) problem: String,
}

pub(super) fn syntax_error<T>(line: usize, problem: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { line, problem: problem.into() })
}

/// Longer ones first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// What Python's `str.isspace` and `\s` take for white space.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `\r\n` and `\r` as `\n`.
pub(super) fn newlines(text: &str) -> Cow<'_, str> {
    if !text.contains('\r') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// The tokens of a template with their lines, [`Token::End`] last.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, SyntaxError> {
    let source = newlines(source);
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether what was read last ended with a newline.
    line_starting: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.line_starting = passed.ends_with('\n');
        self.at += bytes;
    }

    /// Text up to the next tag, and the tag.
    fn root(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let Some((begin, kind)) = next_tag(rest) else {
            self.data(rest, self.line);
            self.advance(rest.len());
            return Ok(());
        };
        let sign = sign_after(rest, begin + 2);
        let text = self.stripped(&rest[..begin], sign, kind);
        let line = self.line;
        self.data(text, line);
        if kind == '%'
            && let Some(end) = raw_begin(&rest[begin..])
        {
            self.advance(begin + end);
            return self.raw();
        }
        self.advance(begin + 2 + sign.len());
        match kind {
            '#' => self.comment(),
            '{' => self.expression("}}"),
            _ => self.expression("%}"),
        }
    }

    fn data(&mut self, text: &str, line: usize) {
        if !text.is_empty() {
            self.tokens.push((Token::Data(text.to_owned()), line));
        }
    }

    /// The text before a tag without what `-` or `lstrip_blocks` takes away.
    fn stripped<'a>(&self, text: &'a str, sign: &str, kind: char) -> &'a str {
        if sign == "-" {
            return text.trim_end_matches(is_space);
        }
        if sign == "+" || kind == '{' {
            return text;
        }
        let line_begin = text.rfind('\n').map_or(0, |at| at + 1);
        let blank = line_begin < text.len() && text[line_begin..].chars().all(is_space);
        if blank && (line_begin > 0 || self.line_starting) { &text[..line_begin] } else { text }
    }

    fn comment(&mut self) -> Result<(), SyntaxError> {
        let Some(end) = self.rest().find("#}") else {
            // Jinja2 takes a comment that begins at the very end for none.
            if self.rest().is_empty() {
                return Ok(());
            }
            return syntax_error(self.line, "missing end of comment tag");
        };
        let sign = sign_before(self.rest(), end);
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// What a tag takes away behind itself: white space with `-`, a newline without a sign (`trim_blocks`).
    fn after_block(&mut self, sign: Option<char>) {
        let rest = self.rest();
        let bytes = match sign {
            Some('-') => rest.len() - rest.trim_start_matches(is_space).len(),
            None if rest.starts_with('\n') => 1,
            _ => 0,
        };
        if bytes > 0 {
            self.advance(bytes);
        }
    }

    fn raw(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let begin = from + found;
            let sign = sign_after(rest, begin + 2);
            let tag = rest[begin + 2 + sign.len()..].trim_start_matches(is_space);
            let Some(tag) = tag.strip_prefix("endraw") else {
                from = begin + 2;
                continue;
            };
            let tag = tag.trim_start_matches(is_space);
            let end_sign = tag.chars().next().filter(|sign| matches!(sign, '+' | '-'));
            let Some(after) = tag[end_sign.map_or(0, char::len_utf8)..].strip_prefix("%}") else {
                from = begin + 2;
                continue;
            };
            let text = self.stripped(&rest[..begin], sign, '%');
            let line = self.line;
            self.data(text, line);
            self.advance(rest.len() - after.len());
            self.after_block(end_sign);
            return Ok(());
        }
        if rest.is_empty() { Ok(()) } else { syntax_error(self.line, "missing end of raw directive") }
    }

    /// The tokens of `{{ … }}` or `{% … %}`.
    fn expression(&mut self, end: &'static str) -> Result<(), SyntaxError> {
        let block = end == "%}";
        self.push(if block { Token::BlockBegin } else { Token::VariableBegin });
        let mut open: Vec<char> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                // Jinja2's lexer ends here, and its parser finds that something is missing.
                return Ok(());
            };
            if open.is_empty()
                && let Some(sign) = end_tag(rest, end)
            {
                self.push(if block { Token::BlockEnd } else { Token::VariableEnd });
                self.advance(sign.map_or(0, char::len_utf8) + 2);
                let trim = block || sign.is_some();
                if trim {
                    self.after_block(sign);
                }
                return Ok(());
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
                continue;
            }
            self.token(rest, first, &mut open)?;
        }
    }

    fn token(&mut self, rest: &str, first: char, open: &mut Vec<char>) -> Result<(), SyntaxError> {
        if first.is_ascii_digit() {
            return self.number(rest);
        }
        if first == '_' || first.is_alphanumeric() {
            let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            if first.is_numeric() {
                return syntax_error(self.line, "invalid character in identifier");
            }
            self.push(Token::Name(rest[..end].to_owned()));
            self.advance(end);
            return Ok(());
        }
        if first == '"' || first == '\'' {
            return self.text(rest, first);
        }
        let Some(operator) = OPERATORS.into_iter().find(|operator| rest.starts_with(operator)) else {
            return syntax_error(self.line, format!("unexpected char {first:?}"));
        };
        match operator {
            "{" => open.push('}'),
            "(" => open.push(')'),
            "[" => open.push(']'),
            "}" | ")" | "]" if open.pop() != operator.chars().next() => {
                return syntax_error(self.line, format!("unexpected '{operator}'"));
            }
            _ => {}
        }
        self.push(Token::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn text(&mut self, rest: &str, quote: char) -> Result<(), SyntaxError> {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, character)| {
            let found = *character == quote && !escaped;
            escaped = *character == '\\' && !escaped;
            found
        });
        let Some((end, _)) = end else {
            return syntax_error(self.line, format!("unexpected char {quote:?}"));
        };
        let text = unescaped(&rest[1..end]).or_else(|problem| syntax_error(self.line, problem))?;
        self.push(Token::Text(text));
        self.advance(end + 1);
        Ok(())
    }

    fn number(&mut self, rest: &str) -> Result<(), SyntaxError> {
        let after_dot = self.source[..self.at].ends_with('.');
        if let Some(length) = float_length(rest).filter(|_| !after_dot) {
            let digits = rest[..length].replace('_', "");
            let Ok(value) = digits.parse() else { return syntax_error(self.line, "invalid number") };
            self.push(Token::Float(value));
            self.advance(length);
            return Ok(());
        }
        let (radix, length) = int_length(rest);
        let digits = rest[if radix == 10 { 0 } else { 2 }..length].replace('_', "");
        let Ok(value) = i128::from_str_radix(&digits, radix) else {
            return syntax_error(
                self.line,
                "numbers beyond 128 bits are not supported in chat templates here",
            );
        };
        self.push(Token::Int(value));
        self.advance(length);
        Ok(())
    }
}

/// Where the next `{{`, `{%` or `{#` is, and which.
fn next_tag(text: &str) -> Option<(usize, char)> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1))
        .find(|at| bytes[*at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'))
        .map(|at| (at, char::from(bytes[at + 1])))
}

/// `-`, `+` or nothing at this place.
fn sign_after(text: &str, at: usize) -> &str {
    let end = if text[at..].starts_with(['-', '+']) { at + 1 } else { at };
    &text[at..end]
}

fn sign_before(text: &str, at: usize) -> Option<char> {
    text[..at].chars().next_back().filter(|sign| matches!(sign, '+' | '-'))
}

/// The sign of the end tag that begins here.
fn end_tag(rest: &str, end: &str) -> Option<Option<char>> {
    if rest.starts_with(end) {
        return Some(None);
    }
    let sign = rest.chars().next().filter(|sign| *sign == '-' || *sign == '+' && end == "%}")?;
    rest[1..].starts_with(end).then_some(Some(sign))
}

/// How long the tag `{% raw %}` is that begins here; what it takes away behind itself included.
fn raw_begin(text: &str) -> Option<usize> {
    let tag = text[2 + sign_after(text, 2).len()..].trim_start_matches(is_space);
    let tag = tag.strip_prefix("raw")?.trim_start_matches(is_space);
    if let Some(after) = tag.strip_prefix("-%}") {
        return Some(text.len() - after.trim_start_matches(is_space).len());
    }
    tag.strip_prefix("%}").map(|after| text.len() - after.len())
}

/// Digits of a number with single underscores between them.
fn digits_length(text: &str, is_digit: impl Fn(char) -> bool) -> usize {
    let mut length = 0;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let goes_on = is_digit(character)
            || character == '_' && length > 0 && characters.peek().is_some_and(|next| is_digit(*next));
        if !goes_on {
            break;
        }
        length += 1;
    }
    length
}

/// How long the number with a fraction or an exponent is that begins here.
fn float_length(text: &str) -> Option<usize> {
    let digits = |from: usize| digits_length(&text[from..], |digit| digit.is_ascii_digit());
    let mut end = digits(0);
    let mut is_float = false;
    if text[end..].starts_with('.') {
        let fraction = digits(end + 1);
        if fraction > 0 {
            end += 1 + fraction;
            is_float = true;
        }
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
            is_float = true;
        }
    }
    is_float.then_some(end)
}

/// Radix and length of the whole number that begins here.
fn int_length(text: &str) -> (u32, usize) {
    let radix = match text.as_bytes() {
        [b'0', b'b' | b'B', ..] => 2,
        [b'0', b'o' | b'O', ..] => 8,
        [b'0', b'x' | b'X', ..] => 16,
        _ => 10,
    };
    if radix != 10 {
        let from = 2 + usize::from(text[2..].starts_with('_'));
        let digits = digits_length(&text[from..], |digit| digit.is_digit(radix));
        if digits > 0 {
            return (radix, from + digits);
        }
    }
    let is_digit = |digit: char| if text.starts_with('0') { digit == '0' } else { digit.is_ascii_digit() };
    (10, digits_length(text, is_digit))
}

/// A text between quotes as Python's `unicode-escape` reads it: an escape that it does not know stays.
fn unescaped(text: &str) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        let escape = &rest[at + 1..];
        let Some(kind) = escape.chars().next() else { return Err("\\ at end of string".into()) };
        let simple = match kind {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\u{7}"),
            'b' => Some("\u{8}"),
            'f' => Some("\u{c}"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\u{b}"),
            _ => None,
        };
        rest = &escape[kind.len_utf8()..];
        if let Some(simple) = simple {
            result.push_str(simple);
            continue;
        }
        match kind {
            'x' | 'u' | 'U' => {
                let length = [2, 4, 8][usize::from(kind != 'x') + usize::from(kind == 'U')];
                result.push(hexadecimal(rest, length)?);
                rest = &rest[length..];
            }
            '0'..='7' => {
                let length = escape.bytes().take(3).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
                let code = u32::from_str_radix(&escape[..length], 8).expect("three octal digits");
                result.push(char::from_u32(code).expect("below 512"));
                rest = &escape[length..];
            }
            'N' => return Err("the escape \\N is not supported in chat templates here".into()),
            other => {
                result.push('\\');
                result.push(other);
            }
        }
    }
    result.push_str(rest);
    Ok(result)
}

fn hexadecimal(text: &str, length: usize) -> Result<char, String> {
    let digits = text.get(..length).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let Some(digits) = digits else { return Err("truncated \\x, \\u or \\U escape".into()) };
    let code = u32::from_str_radix(digits, 16).expect("eight hexadecimal digits");
    char::from_u32(code).ok_or_else(|| {
        format!("the code point {code:#x} in an escape is not supported in chat templates here")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(source: &str) -> Vec<String> {
        let is_data = |(token, _): (Token, usize)| match token {
            Token::Data(text) => Some(text),
            _ => None,
        };
        tokens(source).unwrap().into_iter().filter_map(is_data).collect()
    }

    #[test]
    fn white_space_around_tags_goes_as_in_jinja() {
        assert_eq!(data("a\n  {% if x %}\nb\n  {%+ endif %}\n c\n"), ["a\n", "b\n  ", " c"]);
        assert_eq!(data("a \n{{- x -}} \n b{# c #}\nd"), ["a", "b", "d"]);
        assert_eq!(data("{% if x %}  {% endif %}"), ["  "]);
        assert_eq!(data("{% raw %}{{ x }}{% endraw %}\r\ny"), ["{{ x }}", "y"]);
    }

    #[test]
    fn numbers_and_texts_are_pythons() {
        let found = tokens(r#"{{ 1_000 0x1F 1.5e3 1.real "\x41\d\u00e9\101" }}"#).unwrap();
        let found: Vec<Token> = found.into_iter().map(|(token, _)| token).collect();
        let expected = [
            Token::VariableBegin,
            Token::Int(1000),
            Token::Int(31),
            Token::Float(1500.0),
            Token::Int(1),
            Token::Operator("."),
            Token::Name("real".into()),
            Token::Text("A\\dé\u{41}".into()),
            Token::VariableEnd,
            Token::End,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_template_is_named_with_its_line() {
        for (source, problem) in [
            ("\n{{ ? }}", "unexpected char '?'"),
            ("\n{# x", "missing end of comment"),
            ("\n{{ (] }}", "unexpected ']'"),
        ] {
            let error = tokens(source).unwrap_err();
            assert!(error.line == 2 && error.problem.contains(problem), "{error:?}");
        }
    }
}
