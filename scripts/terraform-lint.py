#!/usr/bin/env python3
"""What `terraform validate` would find without asking a provider: names. Needs python-hcl2; scripts/terraform-lint.sh gives it.

Every file parses. What is referred to is there: variables, locals, resources, data, modules and their outputs. What is declared is used. A call of
a module gives it what it requires, and nothing that it does not know. Variables and outputs are described, in the module's README, too.
"""
import os
import re
import sys

import hcl2

REFERENCE = re.compile(r"(?<![\w.\"])(?:(var|local|module)\.([\w-]+)(?:\.([\w-]+))?|(data\.)?(aws_\w+)\.([\w-]+))")
faults = []


def plain(value):
    return value.strip('"') if isinstance(value, str) else value


def named(blocks):
    """[{'"name"': {...}}, ...] as {name: {...}}."""
    return {plain(name): body for block in blocks for name, body in block.items() if not name.startswith("__")}


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            # python-hcl2 keeps comments; they refer to nothing.
            if key not in ("__comments__", "__inline_comments__"):
                yield from strings(key)
                yield from strings(item)


class Module:
    def __init__(self, folder):
        self.folder = folder
        self.blocks = {}
        for name in sorted(os.listdir(folder)):
            if name.endswith(".tf"):
                path = os.path.join(folder, name)
                try:
                    with open(path, encoding="utf-8") as file:
                        for kind, blocks in hcl2.load(file).items():
                            if not kind.startswith("__"):
                                self.blocks.setdefault(kind, []).extend(blocks)
                except Exception as e:  # whatever the parser raises
                    sys.exit(f"{path}: does not parse: {e}")
        self.variables = named(self.blocks.get("variable", []))
        self.outputs = named(self.blocks.get("output", []))
        self.calls = named(self.blocks.get("module", []))
        self.locals = {k for block in self.blocks.get("locals", []) for k in block if not k.startswith("__")}
        self.things = {
            (prefix, plain(kind), plain(name))
            for prefix, where in (("", "resource"), ("data.", "data"))
            for block in self.blocks.get(where, [])
            for kind, body in block.items()
            if not kind.startswith("__")
            for name in body
            if not name.startswith("__")
        }

    def fault(self, text):
        faults.append(f"{self.folder}: {text}")

    def check(self, modules):
        used = set()
        for text in strings({k: v for k, v in self.blocks.items() if k != "terraform"}):
            for kind, name, attribute, data, resource, label in REFERENCE.findall(text):
                if kind == "var":
                    used.add(("var", name))
                    if name not in self.variables:
                        self.fault(f"var.{name} is not declared")
                elif kind == "local":
                    used.add(("local", name))
                    if name not in self.locals:
                        self.fault(f"local.{name} is not declared")
                elif kind == "module":
                    target = self.target(name, modules)
                    if target is None:
                        self.fault(f"module.{name} is not there")
                    elif attribute and attribute not in target.outputs:
                        self.fault(f"module.{name} has no output {attribute}")
                elif resource and (data, resource, label) not in self.things:
                    self.fault(f"{data}{resource}.{label} is not there")
        for name in self.variables:
            if ("var", name) not in used:
                self.fault(f"var.{name} is used by nothing")
        for name in self.locals:
            if ("local", name) not in used:
                self.fault(f"local.{name} is used by nothing")
        for name, call in self.calls.items():
            target = self.target(name, modules)
            if target is None:
                self.fault(f"the source of module.{name} is not there: {call.get('source')}")
                continue
            given = {k for k in call if not k.startswith("__")} - {"source", "providers", "count", "for_each", "depends_on"}
            required = {n for n, v in target.variables.items() if "default" not in v}
            for missing in sorted(required - given):
                self.fault(f"module.{name} is not given {missing}")
            for unknown in sorted(given - set(target.variables)):
                self.fault(f"module.{name} knows no {unknown}")
        text = ""
        if "/modules/" in self.folder:
            readme = os.path.join(self.folder, "README.md")
            if os.path.exists(readme):
                with open(readme, encoding="utf-8") as file:
                    text = file.read()
            else:
                self.fault("there is no README.md")
        for what, declared in (("variable", self.variables), ("output", self.outputs)):
            for name, body in declared.items():
                if not plain(body.get("description", "")):
                    self.fault(f"{what} {name} has no description")
                if text and f"`{name}`" not in text:
                    self.fault(f"README.md does not say what {what} {name} is")

    def target(self, name, modules):
        call = self.calls.get(name)
        return call and modules.get(os.path.normpath(os.path.join(self.folder, plain(call["source"]))))


def main():
    top = sys.argv[1]
    folders = [folder for folder, _, names in os.walk(top) if any(name.endswith(".tf") for name in names)]
    modules = {os.path.normpath(folder): Module(os.path.normpath(folder)) for folder in sorted(folders)}
    for module in modules.values():
        module.check(modules)
    if not modules:
        sys.exit(f"{top}: no Terraform there")
    if faults:
        sys.exit("\n".join(sorted(set(faults))))
    count = sum(len(m.things) for m in modules.values())
    print(f"{top}: {len(modules)} modules with {count} resources and data: every name is declared, and every declaration used")


main()
