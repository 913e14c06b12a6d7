"""The solver's model of a question about placements; run by `parallax.planner._exact_worker`, from its path.

The model is a *relaxation* of the simulator: whatever schedule the simulator can run of whatever placement is a
solution of the model that takes no longer. So the model's optimum, and any bound of it, is a lower bound; its
solutions are placements that are worth simulating.

What it has, of the simulator: one side per group; on the CPU a width, and no more cores at once than there are; per
device one thing at a time; transfers, charged as the simulator charges them; a launch wherever a path enters a device;
starts of segments wherever a path changes sides. With ``regions`` it has also: regions as wholes, which begin when all
that they read is there and hand out nothing before their end; a launch and a start for each; and hand-overs between
lanes, as far as the simulator cannot avoid them. What it leaves out, all of which can only take time: that the CPU's
groups run in segments, contention, and what parts of the CPU pay for tensors between them and for waking threads.
"""

from __future__ import annotations

from typing import Any

CALLER = -1
"""Who makes the model's inputs, among producers of tensors; and among sides, the CPU."""
CPU = -1


class Relaxation:
    """The model of one question, without regions as wholes.

    Args:
        cp_model: the module of OR-Tools.
        question: see the module.
    """

    has_regions = False

    def __init__(self, cp_model: Any, question: dict[str, Any]) -> None:
        self.question = question
        self.model = model = cp_model.CpModel()
        self.groups = question["groups"]
        self.launch_ns = question["launch_ns"]
        self.start_ns = question["start_ns"]
        self.handover_ns = question["handover_ns"]
        self.is_ahead = question["is_ahead"]
        """Whether the first group has ended before this part of the model begins, at time 0."""
        self.last = question["last"]
        """The group with which this part of the model ends; None: it ends with the model."""
        self.horizon = self._horizon()
        self.makespan = model.new_int_var(0, self.horizon, "")
        self.widths = [[model.new_bool_var("") for _ in question["widths"]] for _ in self.groups]
        self.on = [
            {device: model.new_bool_var("") for device, ns in enumerate(group["device_ns"]) if ns is not None}
            for group in self.groups
        ]
        """Per group and device that takes it: whether it runs there."""
        for widths, devices, side in zip(self.widths, self.on, question["fixed"], strict=True):
            model.add_exactly_one([*widths, *devices.values()])
            if side is not None:
                model.add_bool_or(widths if side == CPU else [devices[side]])
        self.cpu = [sum(widths) for widths in self.widths]
        self.there_ns: list[dict[int, Any]] = []
        """Per group and device, what it takes there: its own time, and the transfers that are charged to it."""
        self.sizes: list[dict[int, Any]] = []
        """The same as the size of an interval: where nothing moves, a number."""
        self._price()
        self.starts = [model.new_int_var(0, self.horizon, "") for _ in self.groups]
        self.ends = [model.new_int_var(0, self.horizon, "") for _ in self.groups]
        self.busy: list[list[Any]] = [[] for _ in self.launch_ns]
        """Per device, what it can do one at a time."""
        self._run_groups()
        self._follow_edges()
        self._exclude()
        model.minimize(self.makespan)

    def side(self, group: int, device: int) -> Any:
        """Whether a group runs on a device; 0 where it can't."""
        return self.on[group].get(device, 0)

    def cpu_ns(self, group: int) -> Any:
        """What a group takes on the CPU; 0 on a device."""
        return sum(ns * chosen for ns, chosen in zip(self.groups[group]["cpu_ns"], self.widths[group], strict=True))

    def work_ns(self, device: int) -> Any:
        """For how long a device is busy, but for launches."""
        return sum(times[device] for times in self.there_ns if device in times)

    def _horizon(self) -> int:
        """Nothing that is worth finding takes longer."""
        below = self.question["below_ns"]
        if below is not None:
            return max(0, int(below) - 1)
        rows = self.question["groups"]
        alone = sum(min(row["cpu_ns"]) for row in rows)
        there = sum(max([0, *(ns for ns in row["device_ns"] if ns is not None)]) for row in rows)
        moved = sum(2 * sum(flow["moving_ns"]) for flow in self.question["flows"])
        fixed = (max(self.launch_ns) + 2 * self.start_ns + 2 * self.handover_ns) * (len(rows) + 1)
        return int(alone + there + moved + fixed)

    def _price(self) -> None:
        model = self.model
        charges: list[dict[int, list[tuple[int, Any]]]] = [
            {device: [(row["device_ns"][device], chosen)] for device, chosen in devices.items()}
            for row, devices in zip(self.groups, self.on, strict=True)
        ]
        for flow in self.question["flows"]:
            home, readers = flow["producer"], flow["readers"]
            for device, moving in enumerate(flow["moving_ns"]):
                if not moving:
                    continue
                made_there = 0 if home == CALLER else self.side(home, device)
                # Down, charged to who makes it: where it is returned, or a reader is elsewhere.
                if home != CALLER and device in self.on[home]:
                    if flow["is_returned"]:
                        down: Any = made_there
                    else:
                        down = model.new_bool_var("")
                        for reader in readers:
                            model.add(down >= made_there - self.side(reader, device))
                    charges[home][device].append((moving, down))
                # Up, charged to the first that reads it there.
                brought: list[Any] = []
                earlier: list[Any] = []
                for reader in readers:
                    if device not in self.on[reader]:
                        continue
                    here = self.on[reader][device]
                    up = model.new_bool_var("")
                    model.add(up >= here - made_there - sum(earlier))
                    earlier.append(here)
                    brought.append(up)
                    if len(brought) > 1:
                        model.add(sum(brought) >= here - made_there)
                    charges[reader][device].append((moving, up))
        for row in charges:
            times = {device: parts[0][0] * parts[0][1] for device, parts in row.items()}
            sizes: dict[int, Any] = {device: parts[0][0] for device, parts in row.items()}
            for device, parts in row.items():
                if len(parts) > 1:
                    times[device] = sizes[device] = model.new_int_var(0, sum(ns for ns, _ in parts), "")
                    model.add(times[device] == sum(ns * is_paid for ns, is_paid in parts))
            self.there_ns.append(times)
            self.sizes.append(sizes)

    def _run_groups(self) -> None:
        """Each group for as long as it takes on its side, which has room for so much at once."""
        model, question = self.model, self.question
        cores = question["cores"]
        wide: list[Any] = []
        demands: list[int] = []
        energy: list[Any] = []
        for number, row in enumerate(self.groups):
            begin, end = self.starts[number], self.ends[number]
            model.add(end == begin + self.cpu_ns(number) + sum(self.there_ns[number].values()))
            if self.last in (None, number):
                model.add(self.makespan >= end)
            for width, ns, chosen in zip(question["widths"], row["cpu_ns"], self.widths[number], strict=True):
                if ns:
                    wide.append(model.new_optional_interval_var(begin, ns, end, chosen, ""))
                    demands.append(width)
                    energy.append(width * ns * chosen)
            for device, chosen in self.on[number].items():
                size = self.sizes[number][device]
                self.busy[device].append(model.new_optional_interval_var(begin, size, end, chosen, ""))
        model.add_cumulative(wide, demands, cores)
        model.add(cores * self.makespan >= sum(energy))
        if not self.has_regions:
            for device, intervals in enumerate(self.busy):
                model.add_no_overlap(intervals)
                used = model.new_bool_var("")
                for devices in self.on:
                    if device in devices and not self.is_ahead:
                        model.add_implication(devices[device], used)
                model.add(self.makespan >= self.work_ns(device) + self.launch_ns[device] * used)

    def _follow_edges(self) -> None:
        """What comes first ends first; where a path enters a device it waits for a launch, where it changes sides for
        the start of a segment."""
        model = self.model
        for number, row in enumerate(self.groups):
            begin = self.starts[number]
            for device, chosen in self.on[number].items():
                if self.launch_ns[device] and not row["before"] and not (self.is_ahead and number == 0):
                    model.add(begin >= self.launch_ns[device] * chosen)
            for before in row["before"]:
                end = self.ends[before]
                model.add(begin >= end)
                for device, chosen in self.on[number].items():
                    waits = self.start_ns + self.launch_ns[device]
                    if waits:
                        model.add(begin >= end + waits * (chosen - self.side(before, device)))
                if self.start_ns and self.on[before]:
                    model.add(begin >= end + self.start_ns * (self.cpu[number] - self.cpu[before]))

    def _exclude(self) -> None:
        """Leave out placements that were judged."""
        for sides in self.question["excluded"]:
            others: list[Any] = []
            for number, side in enumerate(sides):
                if self.on[number]:
                    others += [chosen for device, chosen in self.on[number].items() if device != side]
                    others += self.widths[number] if side != CPU else []
            self.model.add_bool_or(others)

    def hint(self) -> None:
        """Tell the solver where to begin."""
        for devices, side in zip(self.on, self.question["hint"] or (), strict=False):
            for device, chosen in devices.items():
                self.model.add_hint(chosen, device == side)

    def sides_in(self, value: Any) -> list[int]:
        """The placement of a solution, of which ``value`` tells the values."""
        return [next((device for device, chosen in devices.items() if value(chosen)), CPU) for devices in self.on]

    def regions_in(self, value: Any) -> list[list[int]] | None:
        """Groups of each region of a solution; None where the model has no regions."""
        return None


class RegionRelaxation(Relaxation):
    """The same with regions as wholes, and hand-overs. Quadratic in the groups that devices take."""

    has_regions = True

    def __init__(self, cp_model: Any, question: dict[str, Any]) -> None:
        super().__init__(cp_model, question)
        model = self.model
        # What is ahead was launched before this part of the model began.
        earliest = -max(self.launch_ns) if self.is_ahead else 0
        self.begins = [model.new_int_var(earliest, self.horizon, "") for _ in self.groups]
        self.hands = [model.new_int_var(0, self.horizon, "") for _ in self.groups]
        """Per group when its region begins and ends; on the CPU, when itself does."""
        self.same: dict[tuple[int, int, int], Any] = {}
        self.order: dict[tuple[int, int, int], Any] = {}
        """Whether two groups, the lower first, are in one region; whether that of one is over when another's begins."""
        self.after = _descendants(self.groups)
        self.is_serial = model.new_bool_var("")
        """Whether all runs on one lane, and nothing is handed over."""
        for number in range(len(self.groups)):
            model.add(self.begins[number] <= self.starts[number])
            model.add(self.hands[number] >= self.ends[number])
            if self.last is None:
                model.add(self.makespan >= self.hands[number])
            on_cpu = [chosen.negated() for chosen in self.on[number].values()]
            model.add(self.begins[number] == self.starts[number]).only_enforce_if(on_cpu)
            model.add(self.hands[number] == self.ends[number]).only_enforce_if(on_cpu)
        leaders = [self._divide(device) for device in range(len(self.launch_ns))]
        self._count_segments(leaders)
        for number, row in enumerate(self.groups):
            for before in row["before"]:
                self._wait(before, number)
        if self.is_ahead:
            for device, chosen in self.on[0].items():
                model.add(self.begins[0] == -self.launch_ns[device]).only_enforce_if(chosen)
        # Without starts that take time, what ended before this part of the model may have ended at its beginning.
        if self.handover_ns and (self.start_ns or not self.is_ahead):
            self._hand_over()

    def regions_in(self, value: Any) -> list[list[int]] | None:
        """As `Relaxation.regions_in`."""
        regions: list[list[int]] = []
        region_of: dict[int, list[int]] = {}
        for number, side in enumerate(self.sides_in(value)):
            if side == CPU:
                continue
            joined = [other for other in region_of if (other, number, side) in self.same]
            leader = next((other for other in joined if value(self.same[other, number, side])), None)
            if leader is None:
                regions.append([])
            region_of[number] = regions[-1] if leader is None else region_of[leader]
            region_of[number].append(number)
        return regions

    def _divide(self, device: int) -> Any:
        """Regions of a device: each one launch, one after the other. Returns: how many there are."""
        model, launch = self.model, self.launch_ns[device]
        members = [number for number, devices in enumerate(self.on) if device in devices]
        inside: dict[int, list[Any]] = {number: [] for number in members}
        joined_before: dict[int, list[Any]] = {number: [] for number in members}
        for place, first in enumerate(members):
            for second in members[place + 1 :]:
                here, there = self.on[first][device], self.on[second][device]
                same = model.new_bool_var("")
                choices = [same, here.negated(), there.negated()]
                ordered = [(first, second)]
                if second not in self.after[first]:
                    ordered.append((second, first))
                for one, other in ordered:
                    comes_first = model.new_bool_var("")
                    model.add(self.begins[other] >= self.hands[one] + self.start_ns).only_enforce_if(comes_first)
                    model.add_implication(comes_first, here)
                    model.add_implication(comes_first, there)
                    self.order[one, other, device] = comes_first
                    choices.append(comes_first)
                model.add_bool_or(choices)
                model.add_implication(same, here)
                model.add_implication(same, there)
                model.add(self.begins[first] == self.begins[second]).only_enforce_if(same)
                model.add(self.hands[first] == self.hands[second]).only_enforce_if(same)
                self.same[first, second, device] = same
                joined_before[second].append(same)
                for one, other in ((first, second), (second, first)):
                    inside[one].append(self.groups[other]["device_ns"][device] * same)
        for first in members:
            for last in members:
                if last in self.after[first]:
                    # Nothing leaves a region and comes back to it.
                    for between in self.after[first]:
                        if last in self.after[between]:
                            through = self.same.get((first, between, device))
                            ends = self.same[first, last, device]
                            model.add_implication(ends, self.on[between].get(device, 0) if through is None else through)
        leaders = []
        for number in members:
            here = self.on[number][device]
            leads = model.new_bool_var("")
            # What is ahead was launched before.
            if not (self.is_ahead and number == 0):
                model.add(leads >= here - sum(joined_before[number]))
                leaders.append(leads)
            if launch:
                begin = self.begins[number]
                self.busy[device].append(model.new_optional_interval_var(begin, launch, begin + launch, leads, ""))
            model.add(self.starts[number] >= self.begins[number] + launch).only_enforce_if(here)
            took = self.there_ns[number][device] + sum(inside[number]) + launch
            model.add(self.hands[number] >= self.begins[number] + took).only_enforce_if(here)
        model.add_no_overlap(self.busy[device])
        regions = sum(leaders)
        model.add(self.makespan >= self.work_ns(device) + launch * regions)
        return regions

    def _count_segments(self, regions: list[Any]) -> None:
        """Each of several segments takes time to start; on one lane all follow each other."""
        model, start = self.model, self.start_ns
        is_several = model.new_bool_var("")
        if self.is_ahead:
            # Each new region is one more than what was ahead; the CPU's part may have begun before.
            segments = sum(regions)
            model.add(segments == 0).only_enforce_if(is_several.negated())
        else:
            any_cpu = model.new_bool_var("")
            for number in range(len(self.groups)):
                for chosen in self.widths[number]:
                    model.add_implication(chosen, any_cpu)
            segments = sum(regions) + any_cpu
            model.add(segments <= 1).only_enforce_if(is_several.negated())
            for number in range(len(self.groups)):
                model.add(self.begins[number] >= start).only_enforce_if(is_several)
        if start:
            for device, count in enumerate(regions):
                busy = self.work_ns(device) + (self.launch_ns[device] + start) * count
                model.add(self.makespan >= busy).only_enforce_if(is_several)
        on_cpu = sum(map(self.cpu_ns, range(len(self.groups))))
        launches = [ns * count for ns, count in zip(self.launch_ns, regions, strict=True)]
        work = on_cpu + sum(map(self.work_ns, range(len(regions)))) + sum(launches)
        model.add(self.makespan >= work).only_enforce_if(self.is_serial)
        model.add(self.makespan >= work + start * segments).only_enforce_if(self.is_serial, is_several)

    def _wait(self, before: int, number: int) -> None:
        """A region, or a group of the CPU, begins when what it reads has been handed out."""
        model = self.model
        for device, chosen in self.on[number].items():
            same = self.same.get((before, number, device))
            if same is not None:
                waits = self.start_ns + self.launch_ns[device]
                model.add(self.starts[number] >= self.ends[before] + waits * (chosen - same))
            elsewhere = [chosen] + ([self.on[before][device].negated()] if device in self.on[before] else [])
            model.add(self.begins[number] >= self.hands[before] + self.start_ns).only_enforce_if(elsewhere)
        on_cpu = [chosen.negated() for chosen in self.on[number].values()]
        for chosen in self.on[before].values():
            model.add(self.begins[number] >= self.hands[before] + self.start_ns).only_enforce_if([*on_cpu, chosen])

    def _hand_over(self) -> None:
        """What another lane sets going begins later: all but what its own lane comes to by itself, since it ended
        something after all that is waited for had ended."""
        model, size = self.model, len(self.groups)
        pays, several = self.start_ns + self.handover_ns, self.is_serial.negated()
        for number, row in enumerate(self.groups):
            for device, chosen in self.on[number].items():
                queued = [(other, self.order.get((other, number, device))) for other in range(size)]
                away = [
                    (pred, [there[device].negated()] if device in (there := self.on[pred]) else [])
                    for pred in row["before"]
                ]
                comes = self._comes_to([(other, order) for other, order in queued if order is not None], away)
                if not row["before"] and not (self.is_ahead and number == 0):
                    model.add(self.begins[number] >= pays).only_enforce_if([chosen, several, comes.negated()])
                for pred, is_away in away:
                    where = [chosen, several, comes.negated(), *is_away]
                    model.add(self.begins[number] >= self.hands[pred] + pays).only_enforce_if(where)
            there = [(pred, [chosen]) for pred in row["before"] for chosen in self.on[pred].values()]
            if there:
                on_cpu = [chosen.negated() for chosen in self.on[number].values()]
                earlier = [other for other in range(size) if other != number and other not in self.after[number]]
                comes = self._comes_to([(other, self._is_over(other, number)) for other in earlier], there)
                for pred, is_there in there:
                    where = [*on_cpu, several, comes.negated(), *is_there]
                    model.add(self.begins[number] >= self.hands[pred] + pays).only_enforce_if(where)
        read = {before for row in self.groups for before in row["before"]}
        for number in range(size):
            if number in read or not self.on[number] or self.last is not None:
                continue
            # The caller is told of the end, unless it ends itself later.
            later = []
            for other in range(size):
                if other != number:
                    ends_later = model.new_bool_var("")
                    for device in self.on[other].values():
                        model.add_implication(ends_later, device.negated())
                    model.add(self.hands[other] >= self.hands[number]).only_enforce_if(ends_later)
                    later.append(ends_later)
            for chosen in self.on[number].values():
                is_last = model.new_bool_var("")
                model.add_bool_or([is_last, chosen.negated(), self.is_serial, *later])
                model.add(self.makespan >= self.hands[number] + self.handover_ns).only_enforce_if(is_last)

    def _is_over(self, other: int, number: int) -> Any:
        """Whether one group of the CPU has ended when the segment of another starts."""
        model = self.model
        over = model.new_bool_var("")
        for device in (*self.on[other].values(), *self.on[number].values()):
            model.add_implication(over, device.negated())
        model.add(self.begins[number] >= self.hands[other] + self.start_ns).only_enforce_if(over)
        return over

    def _comes_to(self, earlier: list[tuple[int, Any]], waited: list[tuple[int, list[Any]]]) -> Any:
        """Whether a lane comes to a group by itself: after one of these that were over, which ended when all of those
        that are waited for, where that holds, had ended."""
        model = self.model
        comes = model.new_bool_var("")
        links = []
        for other, is_over in earlier:
            link = model.new_bool_var("")
            model.add_implication(link, is_over)
            for pred, where in waited:
                if pred != other:
                    model.add(self.hands[other] >= self.hands[pred]).only_enforce_if([link, *where])
            links.append(link)
        model.add_bool_or([*links, comes.negated()])
        return comes


def _descendants(groups: list[dict[str, Any]]) -> list[set[int]]:
    """Per group all that comes after it."""
    found: list[set[int]] = [set() for _ in groups]
    for number in range(len(groups) - 1, -1, -1):
        for before in groups[number]["before"]:
            found[before] |= {number} | found[number]
    return found
