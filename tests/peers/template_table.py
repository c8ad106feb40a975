"""Snippets of chat templates, one for each construct, and the conversations of tests/peers/templates.py."""

VARIABLES = {
    "s": "Hello, World",
    "u": "Grüße, 👋 ñ",
    "n": 7,
    "neg": -7,
    "f": 2.5,
    "yes": True,
    "no": False,
    "nil": None,
    "l": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "d": {"b": 1, "a": [1, 2.0, None, "it's"], "items": "hidden", "c d": {"e": "<&>"}},
    "people": [
        {"name": "Ann", "age": 30, "tags": {"k": "x"}},
        {"name": "bob", "age": 25, "tags": {"k": "y"}},
        {"name": "Cid", "age": 30},
    ],
    "tree": [{"v": 1, "kids": [{"v": 2, "kids": [{"v": 3}]}, {"v": 4}]}],
    "multi": "a\nb\r\n\n c\n",
    "empty": "",
    "big": {f"k{i}": i for i in range(30)},
}

# fmt: off
EXPRESSIONS = [
    # printing
    "s", "n", "neg", "f", "yes", "nil", "l", "d", "people", "missing", "d.missing", "(1,)", "(1, 2)", "1, 2", "[]", "{}", "()", "[[], {}, ()]",
    "1.0", "1e16", "1e-5", "0.1 + 0.2", "1e22", "123456789012345678901234", "-0.0", "1_000", "0x1F", "0b101", "0o17", "2 ** 100", "[1.5, true, none]", "'a' 'b' \"c\"",
    "['it\\'s', \"q\\\"\", '\\n\\t\\\\', 'é', '\\u200b', '\\x07']", "{'a': {'b': (1, 'x')}}", "{1: 2, none: 3, true: 4, 1.5: 6}", "{'a': 1, 'b': 2, 'a': 3}", "range(3)", "range(1, 10, 3)", "d.keys()", "d.values()", "d.items()",
    # arithmetic
    "n + 1", "n - 10", "n * 3", "n / 2", "n // 2", "neg // 2", "n % 3", "neg % 3", "n % -3", "-7 // -2", "n ** 2", "2 ** -1", "2 ** 0.5", "7.5 // 2", "-7.5 // 2", "-7.5 % 2", "7.5 % -2",
    "-n", "+n", "- -n", "-n ** 2", "2 ** 3 ** 2", "1 + 2 * 3", "(1 + 2) * 3", "yes + yes", "6 / 3", "1 / 3", "f * 2", "10 ** 20", "'ab' * 3", "3 * 'ab'", "[1] * 3", "(1, 2) * 2", "'x' * -1",
    "'a' + 'b'", "[1] + [2]", "(1,) + (2,)", "s ~ n ~ nil ~ l", "n ~ n", "1 ~ 2 + 3", "1 / 0", "'a' + 1", "1 + 'a'", "nil + 1", "missing + 'a'", "'a' + missing", "[1] + (2,)", "-'a'",
    # comparing
    "1 == 1.0", "1 == true", "'a' == 'a'", "l == [3, 1, 2]", "d == {}", "1 != 2", "1 < 2 < 3", "1 < 3 < 2", "3 > 2 >= 2", "'a' < 'b'", "'B' < 'a'", "[1, 2] < [1, 3]", "(1,) < (1, 0)", "1 < 'a'", "nil < 1",
    "missing == missing2", "missing == nil", "missing is defined", "1 == '1'", "2.5 > 2", "2 ** 60 == 2.0 ** 60",
    "'ell' in s", "'x' not in s", "3 in l", "'b' in d", "1 in d", "2 in range(5)", "2.0 in range(5)", "7 in range(0, 10, 2)", "1 in nil", "1 in s", "missing in l", "'a' in missing", "(1, 2) in [(1, 2)]", "'k5' in big", "not 1 in [2]", "('b', 1) in d.items()",
    # logic
    "yes and s", "no and s", "empty or s", "nil or empty", "not empty", "not not s", "0 or none", "missing or 'default'", "'a' if yes else 'b'", "'a' if no else 'b'", "'a' if no", "'a' if no else 'b' if no else 'c'", "yes and no or yes",
    # access
    "d.b", "d['b']", "d['c d'].e", "d['c d']['e']", "d.items", "d['items']", "d.a[0]", "d.a[-1]", "d.a[9]", "l[1]", "l.0", "l['x']", "s[0]", "s[-1]", "s[99]", "u[7]", "d.x.y", "missing.x", "missing['x']", "nil.x", "nil['x']", "n.x", "people[0].name", "people[0]['tags'].k", "big.k29", "big['k0']",
    "d.__class__", "s.__class__", "d._x", "s._x", "l.append", "l.append(4)", "d.update({'x': 1})", "d.pop('b')", "l.sort()", "s.__len__()", "d['get']", "d.get", "n.real", "range(5)[2]", "range(5)[-1]", "range(5)[9]", "''.join",
    # slices
    "s[1:4]", "s[:5]", "s[-5:]", "s[::-1]", "s[::2]", "s[5:1]", "s[1:99]", "s[-99:2]", "u[0:5]", "u[::-1]", "l[1:]", "l[::-1]", "l[:-1]", "l[5:]", "(1, 2, 3)[1:]", "l[::0]", "l['a':]", "l[none:2]", "n[1:2]", "d[1:2]", "missing[1:2]", "l[1:2, 0]",
    # methods of texts
    "s.upper()", "s.lower()", "s.title()", "'hELLO wORLD'.capitalize()", "s.swapcase()", "' a b '.strip()", "' a '.lstrip() ~ '|'", "' a '.rstrip() ~ '|'", "'xxaxx'.strip('x')", "'abcba'.strip('ab')", "'a,b,,c'.split(',')", "' a  b c '.split()", "' a  b c '.split(none, 1)", "'a b c'.split(' ', 1)", "'a b c'.split(maxsplit=1)", "'a,b,c'.split(sep=',', maxsplit=1)",
    "' a  b c '.rsplit(none, 1)", "'a,b,c'.rsplit(',', 1)", "'a,b,c'.rsplit(',')", "multi.splitlines()", "multi.splitlines(true)", "'a--b--c'.partition('--')", "'a--b--c'.rpartition('--')", "'abc'.partition('x')", "'abc'.rpartition('x')", "s.startswith('He')", "s.startswith(('x', 'H'))", "s.endswith('ld')", "s.endswith('W', 0, 8)", "s.startswith('W', 7)", "s.startswith(nil)",
    "s.removeprefix('Hello')", "s.removesuffix('World')", "s.removeprefix('x')", "s.replace('l', 'L')", "s.replace('l', 'L', 1)", "'abc'.replace('', '-')", "s.replace('l')", "s.find('o')", "s.rfind('o')", "s.find('z')", "s.index('o')", "s.index('z')", "s.rindex('o')", "s.count('l')", "s.count('')", "s.find('o', 5)", "s.count('o', 5, 9)", "u.find('👋')",
    "', '.join(words)", "','.join('abc')", "','.join([1])", "','.join(d)", "''.join(people | map(attribute='name'))", "'ab'.center(7, '*')", "'ab'.center(6)", "'abc'.center(6)", "'ab'.ljust(5) ~ '|'", "'ab'.rjust(5, '0')", "'-42'.zfill(6)", "'42'.zfill(1)", "'a\\tb'.expandtabs(4)", "'abc'.isalpha()", "'a1'.isalnum()", "'12'.isdigit()", "''.isdigit()", "' '.isspace()", "'Ab'.istitle()", "'ab'.islower()", "'AB1'.isupper()", "'12'.isnumeric()", "'12'.isdecimal()", "'é'.isascii()", "'a'.isprintable()", "'ß'.upper()", "'ß'.capitalize()", "'they\\'re'.title()", "'ABC'.casefold()",
    "'{} and {}'.format(1, 'x')", "'{1} {0}'.format('a', 'b')", "'{name}'.format(name='z')", "'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')", "'{:05d} {:+d} {:x} {:,}'.format(42, 42, 255, 1234567)", "'{:.2f} {:e} {:g} {:.1%}'.format(3.14159, 12345.678, 0.0001, 0.256)", "'{0[b]} {0.b}'.format(d)", "'{{}} {!r}'.format('a')", "'{'.format()", "'{}'.format()", "s.nope()", "s.split(1)",
    # methods of lists and dictionaries
    "l.index(1)", "l.index(9)", "l.count(1)", "l.copy()", "(1, 2, 1).count(1)", "d.get('b')", "d.get('z')", "d.get('z', 5)", "d.keys() | list", "d.values() | list", "d.copy() == d", "d.items() | list", "dict(a=1, b=2)", "dict(d, z=1)", "dict([('a', 1)])", "dict({'a': 1}, **{'b': 2})", "dict.fromkeys(['a', 'b'], 0)", "d.get(['x'])", "f.is_integer()", "(2.0).is_integer()",
    # % of texts
    "'%s and %s' % (1, 'a')", "'%d%%' % 5", "'%5.2f|' % 3.14159", "'%-6s|' % 'ab'", "'%06d' % 42", "'%+d' % 42", "'%x %X %o' % (255, 255, 8)", "'%#x' % 255", "'%e' % 12345.678", "'%g %g %g' % (0.00001, 1e20, 1.5)", "'%(a)s-%(b)d' % {'a': 'x', 'b': 2}", "'%s' % l", "'%s' % (l,)", "'%s %s' % (1,)", "'%s' % (1, 2)", "'%d' % 'x'", "'%c%c' % (65, 'b')", "'%r' % 'a'", "'%*d' % (5, 42)", "'%.3s' % 'abcdef'", "'%s' % nil", "'%i' % 3.9", "'%s' % missing", "'%5s%%' % 'ab'",
    # filters
    "s | upper", "s | lower", "'hELLO' | capitalize", "'the-quick (brown) fox' | title", "' a ' | trim", "'xax' | trim('x')", "s | replace('l', 'L')", "s | replace('l', 'L', 2)", "n | replace('7', '8')", "s | length", "l | count", "d | length", "n | length", "nil | length", "missing | length", "u | length", "'ab' | list", "d | list", "nil | list", "missing | list",
    "missing | default('x')", "empty | default('x')", "empty | default('x', true)", "nil | d('x', boolean=true)", "missing | d", "l | first", "l | last", "[] | first", "[] | last", "'abc' | first", "'abc' | last", "l | join", "l | join(', ')", "people | join(', ', attribute='name')", "words | join(d='-')", "l | sum", "[0.1, 0.2] | sum", "people | sum(attribute='age')", "l | sum(start=10)", "[] | sum", "words | sum",
    "l | min", "l | max", "words | min", "words | max", "words | min(case_sensitive=true)", "people | max(attribute='age')", "[] | max", "l | sort", "l | sort(reverse=true)", "words | sort", "words | sort(case_sensitive=true)", "people | sort(attribute='age')", "people | sort(attribute='age,name') | map(attribute='name') | list", "people | sort(attribute='age', reverse=true) | map(attribute='name') | list", "[1, 'a'] | sort", "words | unique | list", "words | unique(case_sensitive=true) | list", "people | unique(attribute='age') | list",
    "d | dictsort", "d | dictsort(reverse=true)", "{'a': 2, 'B': 1} | dictsort", "{'a': 2, 'B': 1} | dictsort(true)", "{'a': 2, 'B': 1} | dictsort(by='value')", "d | items | list", "missing | items | list", "l | items | list", "l | reverse | list", "'abc' | reverse", "(1, 2) | reverse | list", "l | batch(2) | list", "l | batch(2, 'x') | list", "[1,2,3,4,5,6,7] | slice(3) | list", "[1,2,3,4,5,6,7] | slice(3, 'x') | list",
    "words | map('upper') | list", "people | map(attribute='name') | list", "people | map(attribute='tags.k') | list", "people | map(attribute='tags.k', default='-') | list", "words | map('replace', 'p', 'q') | join(' ')", "l | select('odd') | list", "l | select | list", "l | reject('odd') | list", "l | select('gt', 1) | list", "people | selectattr('age', 'equalto', 30) | map(attribute='name') | list", "people | selectattr('tags') | list | length", "people | rejectattr('tags') | list", "people | rejectattr('age', '>', 26) | list", "people | selectattr('tags.k', 'defined') | list | length", "words | map('nope') | list", "nil | map('upper') | list", "n | map('upper') | list",
    "people | groupby('age') | list", "people | groupby('tags.k', default='?') | list", "words | groupby('0') | list", "neg | abs", "neg | abs + 1", "'42' | int", "'x' | int", "'x' | int(5)", "'42.9' | int", "2.9 | int", "nil | int", "'ff' | int(base=16)", "'0x1f' | int(base=16)", "' 12 ' | int", "'1_000' | int", "yes | int", "'3.5' | float", "'x' | float", "'x' | float(1.5)", "n | float", "'nan' | float", "2.5 | round", "3.5 | round", "2.675 | round(2)", "0.125 | round(2)", "42 | round", "1234 | round(-2)", "2.1 | round(method='ceil')", "2.19 | round(1, 'floor')", "l | string", "n | string | length",
    "s | tojson", "d | tojson", "l | tojson", "u | tojson", "u | tojson(ensure_ascii=true)", "d | tojson(indent=2)", "d | tojson(indent='--')", "{} | tojson(indent=2)", "[[]] | tojson(indent=1)", "d | tojson(separators=(',', ':'))", "{'b': 1, 'a': 2} | tojson(sort_keys=true)", "'</script>\\n\\x01\\x7f\"\\\\' | tojson", "[1.0, 1e100, none, true, (1, 2)] | tojson", "{1: 2, none: 3, true: 4, 2.5: 5} | tojson", "missing | tojson", "range(2) | tojson", "d | tojson(2)", "d | tojson(false, 1)", "'\\u2028' | tojson", "('a' | safe) | tojson",
    "'<a href=\"x\">' | escape", "'<' | e", "('<' | e) + '<'", "'<' + ('&' | safe)", "('<' | safe) ~ '<'", "'<b>' | safe", "'<' | forceescape", "('<' | e) | forceescape", "['<', '<' | e] | join('>')", "'a\\nb\\n\\nc' | indent", "'a\\nb' | indent(2, true)", "'a\\n\\nb' | indent(2, blank=true)", "'a\\nb' | indent('> ')", "'a\\nb\\n' | indent(1)", "'one two three four' | truncate(10)", "'one two three four' | truncate(10, true)", "'one two three four' | truncate(10, end='~', leeway=0)", "'short' | truncate(5)", "'ab' | center(6)", "'a b-c_d' | wordcount", "'%s-%s' | format(1, 2)", "'%(a)s' | format(a=1)", "'a b/c?ü' | urlencode", "{'a b': 'c/d'} | urlencode", "{'a': 1, 'b': none} | xmlattr", "1500 | filesizeformat", "1500000 | filesizeformat(true)", "1 | filesizeformat", "d | attr('b')", "s | attr('upper')", "people | tojson | length", "s | upper | lower | title", "s | nope", "(s | length) + 1", "s | length + 1",
    # tests
    "n is odd", "n is even", "n is divisibleby 7", "n is divisibleby(2)", "s is string", "n is number", "f is float", "n is integer", "yes is integer", "yes is boolean", "yes is true", "no is false", "nil is none", "nil is not none", "missing is undefined", "s is defined", "d is mapping", "l is sequence", "s is sequence", "n is sequence", "l is iterable", "n is iterable", "nil is iterable", "missing is iterable", "s is callable", "range is callable", "s is lower", "'AB' is upper", "1 is eq 1", "1 is ne 2", "2 is gt 1", "2 is ge 2", "1 is lt 2", "1 is le 1", "1 is equalto(1)", "1 is in [1, 2]", "'a' is in 'abc'", "nil is sameas none", "s is filter", "'upper' is filter", "'odd' is test", "'nope' is filter", "('a' | e) is escaped", "n is odd and s is string", "n is not odd or yes", "not n is odd", "s is nope", "n is odd is even", "d.x is defined", "d.x.y is defined", "missing.x is defined", "missing is defined and missing.x",
    # calls
    "range(5) | list", "range(2, 8, 3) | list", "range(5, 0, -2) | list", "range(0)", "range(100001)", "range('a')", "range(1, 2, 0)", "s()", "missing()", "namespace(a=1).a", "namespace({'a': 1}).a", "namespace(a=1).b", "namespace(_a=1)", "cycler(1, 2).next()", "joiner()() ~ 'x'", "lipsum", "raise_exception('no ' + s)", "range(*[1, 4]) | list", "dict(**{'a': 1})", "range(1, **{'x': 2})", "strftime_now('%Y-%m-%d %B %d, %A %H:%M')", "strftime_now('%d %b %Y')", "messages[0].role", "messages | length", "tools is none", "documents is none", "add_generation_prompt", "bos_token is defined", "self", "loop is defined",
]

BLOCKS = [
    # loops
    "{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }} {% endfor %}",
    "{% for x in l %}[{{ loop.previtem }}|{{ loop.nextitem }}]{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in l %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ loop.length }}{% endfor %}", "{% for x in l if x > 9 %}x{% else %}none{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in [1,2,3,4] if ns.n < 2 %}{{ x }}{% set ns.n = ns.n + 1 %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in [1,2,3,4] if ns.n < 2 %}{{ x }}{{ loop.last }}{% set ns.n = ns.n + 1 %}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }} {% endfor %}", "{% for c in 'añb' %}{{ c }}-{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% for a, b in [1] %}{{ a }}{% endfor %}", "{% for x in nil %}{% endfor %}", "{% for x in n %}{% endfor %}", "{% for x in missing %}x{% endfor %}end",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% continue %}{% else %}else{% endfor %}", "{% for x in l %}{% break %}{% else %}else{% endfor %}",
    "{% for x in l %}{% for y in [1, 2] %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index }};{% endfor %}", "{% for x in l %}{% set outer = loop %}{% for y in 'ab' %}{{ outer.index }}{{ y }}{% endfor %}{% endfor %}",
    "{% for t in tree recursive %}{{ loop.depth }}{{ loop.depth0 }}:{{ t.v }}{% if t.kids %}({{ loop(t.kids) }}){% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(x) }}{% endfor %}", "{% for x in l | reverse %}{{ x }}{% endfor %}", "{% for x in l[::-1] %}{{ x }}{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}",
    "{% set g = words | map('upper') %}{% for x in g %}{{ x }}{% endfor %}|{% for x in g %}{{ x }}{% endfor %}", "{% set g = l | map('string') %}{{ g | first }}{{ g | list }}", "{% for x in words | map('upper') %}{{ loop.length }}{{ x }}{% endfor %}", "{% set x = 5 %}{% for x in l %}{% endfor %}{{ x }}", "{% for x in l %}{% set y = x %}{% endfor %}{{ y }}", "{% for x in l %}{{ y }}{% set y = x %}{% endfor %}", "{% set y = 0 %}{% for x in l %}{{ y }}{% set y = x %}{% endfor %}{{ y }}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = 1 %}{% endfor %}",
    "{% for x in people | groupby('age') %}{{ x.grouper }}:{{ x.list | map(attribute='name') | join('+') }} {% endfor %}", "{% for g, items in people | groupby('age') %}{{ g }}{{ items | length }} {% endfor %}",
    # set, namespaces, scopes
    "{% set x = 1 %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set x = 1, 2 %}{{ x }}", "{% set x %}a{{ n }}b{% endset %}{{ x }}|{{ x | length }}", "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}",
    "{% if yes %}{% set x = 1 %}{% endif %}{{ x }}", "{% if no %}{% set s = 1 %}{% endif %}{{ s }}", "{% if no %}{% set zz = 1 %}{% endif %}{{ zz is defined }}", "{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set ns = namespace(l=[]) %}{% set ns.l = ns.l + [1] %}{{ ns.l }}", "{% set ns = namespace(a=1) %}{% set ns.a, b = 5, 6 %}{{ ns.a }}{{ b }}", "{% set l = l + [4] %}{{ l }}", "{% set x = x | default(3) %}{{ x }}", "{% set none = 1 %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with a = 1 %}{% with a = a + 1 %}{{ a }}{% endwith %}{{ a }}{% endwith %}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}", "{% with a = n, n = 1 %}{{ a }}{{ n }}{% endwith %}", "{% with s = 1 %}{% for x in l %}{{ s }}{% endfor %}{% endwith %}{{ s }}",
    "{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}", "{% if no %}a{% elif yes %}b{% else %}c{% endif %}", "{% if no %}a{% elif no %}b{% else %}c{% endif %}", "{% if no %}a{% endif %}", "{% if no %}{{ s | nope }}{% endif %}ok", "{% for x in [] %}{{ s | nope }}{% endfor %}ok", "{% if missing %}a{% else %}b{% endif %}", "{% if d and l and s %}a{% endif %}", "{% if yes %}{% if no %}a{% else %}b{% endif %}{% endif %}", "{% if 1, 2 %}a{% endif %}", "{{ (s | nope) if no else 'fine' }}",
    # macros, call, filter
    "{% macro f(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=4, a=5) }} {{ f() }}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=1) }}", "{% macro f(a) %}[{{ caller() }}]{{ a }}{% endmacro %}{% call f(1) %}body{{ n }}{% endcall %}", "{% macro f() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) f() %}{{ a + b }}{% endcall %}", "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}", "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}", "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro f() %}{{ s }}{{ late }}{% endmacro %}{% set late = 5 %}{{ f() }}", "{{ f is defined }}{% macro f() %}{% endmacro %}{{ f is callable }}", "{% macro f(a=s, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f() }}{{ f(1) }}", "{% macro f(x) %}{% set s = x %}{{ s }}{% endmacro %}{{ f(1) }}{{ s }}", "{% for x in l %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}", "{% macro f(x) %} {{- x }} {% endmacro %}{{ f(1) | trim | length }}", "{% macro f() %}a{% endmacro %}{{ f() ~ f() }}{{ f() | upper }}{{ f.name }}", "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{{ inner() }}{% endmacro %}{{ outer() }}", "{% macro f(a, a) %}{% endmacro %}", "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f(m) %}{{ m.role }}{% endmacro %}{% for m in messages %}{{ f(m) }} {% endfor %}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aaa{% endfilter %}", "{% filter trim %}  x  {% endfilter %}|", "{% for x in l %}{% filter upper %}a{{ loop.index }}{% endfilter %}{% endfor %}", "{% set j = joiner('; ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}", "{% print s, n %}",
    # white space, comments, raw
    "a\n{% if yes %}\nb\n{% endif %}\nc\n", "a\n   {% if yes %}\n  b\n   {% endif %}\nc", "a\n   {%+ if yes %}b{% endif %}", "a {%- if yes -%} b {%- endif -%} c", "{{ s }}\n{{- n }}\n{{ n -}}\n x", "a\n  {# c #}\nb", "a{#- c -#} b", "x {% raw %}{{ s }} {% if %}{% endraw %} y", "{%- raw -%} a {%- endraw -%} b", "{{ '{{' }}{{ '%}' }}", "a\r\nb\rc{% if yes %}\r\nd{% endif %}", "{{ 'a\r\nb' }}", "a\n\n", "a\n", "{{ n }}\n\n\nb", "{% if yes %}  {% endif %}x", "  {% set x = 1 %}  y", "{% if yes +%}\nx{% endif %}", "{{ n +}}", "{% for x in l -%}\n  {{ x }}\n{%- endfor %}", "{%if yes%}a{%endif%}", "{{s}}{{-n-}} x", "\t{% if yes %}a{% endif %}", "{% if yes: %}a{% endif %}", "{# {{ s }} #}a", "{#", "{{ 'a' ", "{% if yes %}", "{% endif %}", "{% nope %}", "{% do l.append(1) %}", "{{ }}", "{{ s s }}", "{{ (1 }}", "{{ 1] }}", "{{ 'a }}", "{{ a.'b' }}", "{{ s | }}", "{% set %}", "{% for %}", "{% break %}", "}} %} #}", "{ { s } }", "{{ {'a': {'b': 1}} }}", "{{ '\\x41\\u00e9\\101\\d' }}", "{{ \"a\\\nb\" }}",
    # statements that transformers' environment has none of, or no loader for
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
    # generation
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}é{% endgeneration %}{% else %}{{ m.content }}{% endif %};{% endfor %}",
    "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}", "{% for m in messages %}{%- generation -%} {{ loop.index }} {%- endgeneration -%}{% endfor %}", "{% macro f() %}{% generation %}ab{% endgeneration %}{% endmacro %}x{{ f() }}y", "{% set x %}q{% generation %}ab{% endgeneration %}{% endset %}12345{{ x }}", "{% generation %}{% generation %}in{% endgeneration %}out{% endgeneration %}", "{% generation %}{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}{% endgeneration %}", "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}", "{% generation %}a", "{% for x in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    # errors in the middle
    "a{{ raise_exception('stop') }}b", "{% if messages | length > 99 %}{{ raise_exception('x') }}{% endif %}ok", "{{ missing.attribute }}", "{{ missing() }}", "{{ l | map('upper') | first }}", "{{ (l | map('nope')) is iterable }}", "{{ l | length | upper }}", "{{ loop.index }}", "{{ caller() }}", "{{ varargs }}", "{{ {}.x }}|{{ [].x }}", "{% set x = {'a': 1}.items() %}{% for k, v in x %}{{ k }}{% endfor %}{% for k, v in x %}{{ v }}{% endfor %}", "{{ messages }}", "{{ messages[1] }}", "{% for m in messages %}{{ m }}{% endfor %}",
    "{%- for m in messages -%}\n{{ '<|' ~ m['role'] ~ '|>' }}\n{{ m.content | trim }}\n{%- if not loop.last %}\n\n{% endif %}\n{%- endfor -%}",
]
# fmt: on

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a place: it's <b>now</b>.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city", "enum": ["Paris", "Zürich"]},
                "days": {"type": "integer", "description": "How many days"},
                "exact": {"type": "boolean"},
            },
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "id": "call12345", "function": {"name": "get_weather", "arguments": {"city": "Paris", "n": None, "ok": True}}}

CONVERSATIONS = {
    "plain": {
        "messages": [
            {"role": "user", "content": "Hello, what's 3 < 4?"},
            {"role": "assistant", "content": " It's true. "},
            {"role": "user", "content": "Grüße 👋\nnext line"},
            {"role": "assistant", "content": "Bye!"},
        ]
    },
    "system": {
        "messages": [
            {"role": "system", "content": "Be brief.\n"},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
        ]
    },
    "prompt": {
        "messages": [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}],
        "add_generation_prompt": True,
    },
    "tools": {
        "messages": [
            {"role": "system", "content": "Use the tools."},
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": '{"t": 21, "sky": "clear"}'},
            {"role": "assistant", "content": "21 degrees, clear."},
        ],
        "tools": [WEATHER],
    },
    "reasoning": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "reasoning_content": "Simple sum.", "content": "4"},
            {"role": "user", "content": "And 3+3?"},
            {"role": "assistant", "content": "<think>\nsix\n</think>\n\n6"},
        ],
        "variables": {"enable_thinking": True},
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Look at"}, {"type": "text", "text": " this."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "I see."}]},
            {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
        ],
        "add_generation_prompt": True,
    },
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
DATE = "2025-01-31 10:20:30"


def snippets():
    return ["{{ " + expression + " }}" for expression in EXPRESSIONS] + BLOCKS
