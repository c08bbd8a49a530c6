// Answers in a few words.

export const pixels = (area) => `${Math.round(area).toLocaleString("en")} px`;

/** Return what is shown in words: `24 coin`, or shares of the image. */
export function summary(answer, shown, most = 4) {
  if (answer.kind === "semantic") {
    const total = answer.width * answer.height;
    return answer.objects.filter((_, index) => shown[index]).sort((one, other) => other.area - one.area).slice(0, most)
      .map((object) => `${object.class} ${percent(object.area / total)}`).join(", ");
  }
  const counts = new Map();
  answer.objects.forEach((object, index) => { if (shown[index]) counts.set(object.class, (counts.get(object.class) ?? 0) + 1); });
  const all = [...counts].sort((one, other) => other[1] - one[1]);
  return all.slice(0, most).map(([name, count]) => `${count} ${name}`).join(", ") + (all.length > most ? `, ${all.length - most} more classes` : "");
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
