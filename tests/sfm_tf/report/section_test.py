from sfm_tf.report.section import Section


def test_a_section_is_a_heading_until_it_is_given_more():
    section = Section("Cost")
    assert (section.paragraphs, section.tables, section.figures) == ((), (), ())
