#!/usr/bin/env python3
"""What an archive costs on AWS, per shard and month.

    scripts/costs.py                        the tables of docs/costs.md
    scripts/costs.py --prices FILE.json     with your prices; without a FILE, see PRICES for the names
    scripts/costs.py --write docs/costs.md  puts the tables there
    scripts/costs.py --check docs/costs.md  whether the arithmetic is right, and whether the page holds these tables

How often the program asks for something is read from its sources, so that the tables change with them.
"""
import argparse
import datetime
import json
import math
import os
import re
import sys
from dataclasses import dataclass

# US dollars, list prices of us-east-1 as remembered in 2025, without the free tier, discounts and taxes. No price list could be asked when
# this was written: replace them by yours.
PRICES = {
    "s3_gib_month": 0.023,  # S3 Standard, the first 50 TB
    "s3_put_1000": 0.005,  # PUT, COPY, POST, LIST; also each part of an upload
    "s3_get_1000": 0.0004,  # GET, HEAD
    "region_transfer_gib": 0.02,  # between two regions of a continent
    "replication_time_control_gib": 0.015,
    "ebs_snapshot_gib_month": 0.05,  # the standard tier
}
GIB = 2**30
MIB = 2**20
HOURS = 730  # of a month
DAYS = HOURS / 24
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


@dataclass
class Shard:
    """What is assumed of one: the server, then how it is kept."""

    name: str
    binlog_bytes_s: float  # on average over the month
    writing: float  # the part of all seconds in which something is written
    data_gib: float
    changed_a_day: float  # the part of the data's blocks that a day changes
    nodes: int = 3
    binlog_bytes: int = 1 * GIB  # max_binlog_size
    binlog_stored: float = 0.25  # of its bytes, compressed; docs/benchmarks.md found 0.164
    data_stored: float = 0.5
    daily: int = 7
    weekly: int = 4
    monthly: int = 12
    prune_hours: float = 24  # from one run to the next
    grace_hours: float = 1  # segments_grace
    noncurrent_days: float = 14  # how long the bucket keeps what was deleted
    timelines: int = 2
    list_s: float = 0.1  # one answer to LIST


SHARDS = [
    Shard("quiet", 5_000, 0.10, 50, 0.01),
    Shard("steady", 200_000, 1.0, 500, 0.02),
    Shard("busy", 5_000_000, 1.0, 2000, 0.05),
]


def constant(file, pattern, absent=None):
    """A number in the program's sources; `absent` where there is no such file."""
    if absent is not None and not os.path.exists(os.path.join(ROOT, file)):
        return absent
    with open(os.path.join(ROOT, file), encoding="utf-8") as source:
        found = re.findall(pattern, source.read())
    if len(found) != 1:
        sys.exit(f"costs.py: {file} has {len(found)} places that look like `{pattern}`; its habits have changed: look at this program")
    return eval(found[0], {"__builtins__": {}})  # digits and *, by the pattern


SECONDS = r"Duration::from_secs\((\d+)\)"
TIMELINES_S = constant("src/ship/shipper.rs", rf"const LINEAGE_INTERVAL: Duration = {SECONDS}")
REQUESTS_S = constant("src/snapshot/request.rs", rf"const POLL_INTERVAL: Duration = {SECONDS}")
SURVEY_S = constant("src/agent/survey.rs", rf"const INTERVAL: Duration = {SECONDS}")
REST_PER_LOOK = constant("src/agent/survey.rs", r"const REST_PER_LOOK: u32 = (\d+);")
# How often an agent says that it is there; how often it looks at the other region's bucket.
PRESENCE_MIN = constant("src/agent/presence.rs", r"const INTERVAL: Duration = Duration::from_mins\((\d+)\)", math.inf)
REPLICA_S = constant("src/config/replica.rs", rf"const INTERVAL_WATCHED: Duration = {SECONDS}", math.inf)
REPLICA_LISTS = 3 * 2  # records, segments, and sealed binlogs, in both buckets; everything every ten minutes
PART_BYTES = constant("src/store/s3/upload.rs", r"const FIRST_PART_BYTES: usize = ([\d *]+);")
PARTS_OF_ONE_SIZE = constant("src/store/s3/upload.rs", r"const PARTS_OF_ONE_SIZE: usize = (\d+);")
FLUSH_S = 1  # [ship] flush_interval and segment_bytes, by default
SEGMENT_BYTES = 8 * MIB
PAGE = 1000  # keys in an answer to LIST


def upload_puts(size_bytes):
    """The requests of one large object: its beginning, its parts, its completion."""
    parts, part = 0, PART_BYTES
    while size_bytes > PARTS_OF_ONE_SIZE * part:
        size_bytes -= PARTS_OF_ONE_SIZE * part
        parts += PARTS_OF_ONE_SIZE
        part *= 2
    return parts + math.ceil(size_bytes / part) + 2


def pages(objects):
    return max(1, math.ceil(objects / PAGE))


def kept(shard, today):
    """The ages in days of the snapshots that the rules keep, of one each day."""
    ages = set()
    for count, period in (
        (shard.daily, lambda d: d),
        (shard.weekly, lambda d: d.isocalendar()[:2]),
        (shard.monthly, lambda d: (d.year, d.month)),
    ):
        seen = []
        for age in range(1000):
            name = period(today - datetime.timedelta(days=age))
            if name not in seen:
                if len(seen) == count:
                    break
                seen.append(name)
                ages.add(age)
    return sorted(ages)


def retention(shard):
    """On average over a year: how many snapshots are kept, how old the oldest is in days, and how often the data that their changed blocks
    are (the first one whole, each other one what was changed since the one before)."""
    days = [datetime.date(2025, 1, 1) + datetime.timedelta(days=n) for n in range(365)]
    count = span = blocks = 0
    for ages in (kept(shard, day) for day in days):
        count += len(ages)
        span += ages[-1]
        changed = [1 - (1 - shard.changed_a_day) ** (older - newer) for newer, older in zip(ages, ages[1:])]
        blocks += 1 + sum(changed)
    return count / len(days), span / len(days), blocks / len(days)


def month(shard):
    """Requests and bytes of a month, once the archive is as old as its retention."""
    seconds = HOURS * 3600
    raw = shard.binlog_bytes_s * seconds
    stored_gib = raw * shard.binlog_stored / GIB
    binlogs = raw / shard.binlog_bytes
    segments = max(shard.writing * seconds / FLUSH_S, raw / SEGMENT_BYTES)
    sealing = upload_puts(shard.binlog_bytes * shard.binlog_stored) + 2  # its open.json and its manifest
    snapshot_gib = shard.data_gib * shard.data_stored
    snapshot = upload_puts(snapshot_gib * GIB) + 2  # its record, twice
    snapshots, span_days, blocks = retention(shard)

    # A binlog's segments stay until it is closed, its grace is over, and prune comes by.
    rotation_hours = HOURS / binlogs
    segment_hours = rotation_hours / 2 + shard.grace_hours + shard.prune_hours / 2
    segments_there = segments * segment_hours / HOURS
    binlogs_there = binlogs * span_days / DAYS
    # Timelines and the records of snapshots; binlogs and their manifests; the folders of servers, of one server's binlogs, and the segments of
    # the binlog that is written, half of it there on average. Where looking takes long it rests longer.
    folders_there = binlogs * segment_hours / HOURS
    unsealed = min(segments / binlogs, segments) / 2
    look = {"records": 1 + pages(2 * snapshots), "binlogs": pages(2 * binlogs_there), "segments": 1 + pages(folders_there) + pages(unsealed)}
    look_s = sum(look.values()) * shard.list_s
    looks = shard.nodes * seconds / (look_s + max(SURVEY_S, REST_PER_LOOK * look_s))
    lists = {
        "who is primary": seconds / TIMELINES_S,
        "requests for snapshots": seconds / REQUESTS_S,
        **{f"looking: {name}": looks * count for name, count in look.items()},
        "prune": HOURS / shard.prune_hours * 2 * pages(segments_there + 2 * binlogs_there),
    }
    gets = seconds / TIMELINES_S * shard.timelines + looks * (shard.timelines + snapshots + 1) + shard.nodes * binlogs
    return {
        "segments": segments,
        "presence": shard.nodes * seconds / 60 / PRESENCE_MIN,
        "replica_lists": seconds / REPLICA_S * REPLICA_LISTS,
        "sealing": binlogs * sealing,
        "clone": DAYS * snapshot,
        "lists": lists,
        "gets": gets,
        "objects": segments + 3 * binlogs,
        "new_gib": 2 * stored_gib,
        "clone_gib": DAYS * snapshot_gib,
        # What was deleted stays for noncurrent_days.
        "segments_gib": stored_gib * (segment_hours / 24 + shard.noncurrent_days) / DAYS,
        "binlogs_gib": stored_gib * (span_days + shard.noncurrent_days) / DAYS,
        "clones_gib": snapshot_gib * (snapshots + shard.noncurrent_days),
        "ebs_gib": shard.data_gib * blocks,
        "ebs_copied_gib": DAYS * shard.data_gib * shard.changed_a_day,
        "snapshots": snapshots,
        "span_days": span_days,
        "segments_there": segments_there,
    }


def cost(shard, prices):
    m = month(shard)
    put = prices["s3_put_1000"] / 1000
    copy = prices["region_transfer_gib"] + prices["replication_time_control_gib"]
    ours = {
        "PUT: segments": m["segments"] * put,
        "PUT: sealed binlogs": m["sealing"] * put,
        "PUT: agents' presence": m["presence"] * put,
        "LIST": sum(m["lists"].values()) * put,
        "GET": m["gets"] * prices["s3_get_1000"] / 1000,
        "storage: segments": m["segments_gib"] * prices["s3_gib_month"],
        "storage: binlogs": m["binlogs_gib"] * prices["s3_gib_month"],
    }
    there = {
        "PUT of copies": (m["objects"] + m["presence"]) * put,
        "LIST: the other region": m["replica_lists"] * put,
        "transfer, with RTC": m["new_gib"] * copy,
        "storage of copies": ours["storage: segments"] + ours["storage: binlogs"],
    }
    clones = m["clones_gib"] * prices["s3_gib_month"]
    ebs = m["ebs_gib"] * prices["ebs_snapshot_gib_month"]
    snapshots = {
        "clone: PUT and storage": m["clone"] * put + clones,
        "clone: copies of them": 2 * DAYS * put + m["clone_gib"] * copy + clones,
        "EBS: storage": ebs,
        "EBS: copies, transfer and storage": m["ebs_copied_gib"] * prices["region_transfer_gib"] + ebs,
    }
    return ours, there, snapshots


def number(x):
    return f"{x:,.1f}" if 0 < x < 10 else f"{x:,.0f}"


def money(x):
    return f"{x:,.2f}"


def table(head, rows):
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def tables(prices, shards=SHARDS):
    months, costs = [month(s) for s in shards], [cost(s, prices) for s in shards]
    head = [s.name for s in shards]
    assumed = [
        ["binlog, kB/s on average", *(number(s.binlog_bytes_s / 1000) for s in shards)],
        ["seconds with writes", *(f"{s.writing:.0%}" for s in shards)],
        ["data, GiB", *(number(s.data_gib) for s in shards)],
        ["of it changed each day", *(f"{s.changed_a_day:.0%}" for s in shards)],
        ["nodes with an agent", *(str(s.nodes) for s in shards)],
    ]
    puts = {"segments": "segments", "sealing": "sealed binlogs", "presence": "agents' presence"}
    counted = [[f"PUT: {name}", *(number(m[key]) for m in months)] for key, name in puts.items()]
    counted += [[f"LIST: {name}", *(number(m["lists"][name]) for m in months)] for name in months[0]["lists"]]
    counted += [
        ["LIST: the other region", *(number(m["replica_lists"]) for m in months)],
        ["GET", *(number(m["gets"]) for m in months)],
        ["segments in the bucket at a time", *(number(m["segments_there"]) for m in months)],
        ["snapshots kept", *(number(m["snapshots"]) for m in months)],
        ["binlogs kept, days", *(number(m["span_days"]) for m in months)],
        ["stored: segments, GiB", *(number(m["segments_gib"]) for m in months)],
        ["stored: binlogs, GiB", *(number(m["binlogs_gib"]) for m in months)],
        ["stored: clone snapshots, GiB", *(number(m["clones_gib"]) for m in months)],
        ["stored: EBS snapshots, GiB", *(number(m["ebs_gib"]) for m in months)],
    ]
    rows = []
    for part, title in ((0, "**archive, one region**"), (1, "**archive, in the DR region, too**")):
        rows += [[name, *(money(c[part][name]) for c in costs)] for name in costs[0][part]]
        rows.append([title, *(f"**{money(sum(sum(c[p].values()) for p in range(part + 1)))}**" for c in costs)])
    rows += [[name, *(money(c[2][name]) for c in costs)] for name in costs[0][2]]
    for kind in ("clone", "EBS"):
        total = [sum(c[0].values()) + sum(c[1].values()) + sum(v for k, v in c[2].items() if k.startswith(kind)) for c in costs]
        rows.append([f"**all, two regions, {kind} snapshots**", *(f"**{money(t)}**" for t in total)])
    priced = [[f"`{name}`", f"{price:g}"] for name, price in prices.items()]
    return "\n\n".join(
        [
            table(["price, US$", ""], priced),
            table(["assumed of the shard", *head], assumed),
            table(["a month", *head], counted),
            table(["US$ a month", *head], rows),
        ]
    )


def check_arithmetic():
    """By hand, with round numbers."""
    one = Shard("one", 1_000_000, 1.0, 100, 0.5, nodes=1, daily=2, weekly=1, monthly=1, noncurrent_days=0)
    m = month(one)
    # A month has 2,628,000 s: as many segments, for 1 MB is less than 8 MiB; 2,628 GB of binlog.
    assert m["segments"] == 2_628_000
    assert math.isclose(m["new_gib"], 2 * 2_628_000 * 1e6 * 0.25 / 2**30) and round(m["new_gib"]) == 1224
    # 256 MiB in 5 MiB: 51 whole parts and one that is not, beginning, end; open.json, manifest. 2447.5 binlogs.
    assert upload_puts(256 * MIB) == 54 and round(m["sealing"] / 56) == 2448
    # 950 parts of 5 MiB, then one of 10.
    assert upload_puts(950 * 5 * MIB) == 952 and upload_puts(950 * 5 * MIB + 1) == 953
    assert m["lists"]["requests for snapshots"] == 2_628_000 / REQUESTS_S and m["lists"]["who is primary"] == 2_628_000 / TIMELINES_S
    # A binlog lasts 0.298 h, so segments are there for 13.15 h: 47,337 of them, of 44 binlogs; half a binlog has 537.
    assert round(m["segments_there"], -1) == 47340
    # 160 objects of binlogs are on one page, records on two, folders and segments on three: 6 pages, 0.6 s, and then it rests for a minute.
    assert math.isclose(m["lists"]["looking: segments"], 3 * m["lists"]["looking: records"] / 2)
    assert math.isclose(m["lists"]["looking: binlogs"], 2_628_000 / 60.6)
    # At 16 MiB/s they are cut at 8 MiB: two a second.
    assert round(month(Shard("fast", 16 * MIB, 1.0, 1, 0))["segments"]) == 2 * 2_628_000
    # Saturday 2025-03-15: today and yesterday; the newest of the week and of the month is today's.
    assert kept(one, datetime.date(2025, 3, 15)) == [0, 1]
    # Friday to Sunday, the Sunday before, the last days of February and January.
    three = Shard("three", 1, 1, 1, 0, daily=3, weekly=2, monthly=3)
    assert kept(three, datetime.date(2025, 3, 16)) == [0, 1, 2, 7, 16, 44]
    # Half of the data is another one each day: 100 GiB, and 50 of the day before.
    assert math.isclose(m["ebs_gib"], 150)
    ours, there, _ = cost(one, PRICES)
    assert math.isclose(ours["PUT: segments"], 13.14) and math.isclose(there["transfer, with RTC"], m["new_gib"] * 0.035)


BEGIN, END = "<!-- scripts/costs.py: begin -->", "<!-- scripts/costs.py: end -->"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", help="a JSON object of prices that replace the ones in this program")
    parser.add_argument("--write", metavar="PAGE", help="put the tables into this page")
    parser.add_argument("--check", metavar="PAGE", help="compare the tables with this page's")
    arguments = parser.parse_args()
    prices = dict(PRICES)
    if arguments.prices:
        with open(arguments.prices, encoding="utf-8") as file:
            given = json.load(file)
        unknown = set(given) - set(PRICES)
        if unknown:
            sys.exit(f"costs.py: unknown prices: {', '.join(sorted(unknown))}; known are {', '.join(PRICES)}")
        prices.update(given)
    check_arithmetic()
    made = tables(prices)
    path = arguments.write or arguments.check
    if not path:
        print(made)
        return
    with open(path, encoding="utf-8") as file:
        page = file.read()
    before, _, rest = page.partition(BEGIN)
    there, _, after = rest.partition(END)
    if arguments.write:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")
    elif there.strip() != made:
        # The program's habits have changed. That makes nothing wrong but the page.
        print(f"NOTE: the tables of {path} are out of date: scripts/costs.py --write {path}")


main()
